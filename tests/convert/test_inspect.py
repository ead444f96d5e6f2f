"""What a checkpoint is said to be."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffmoe_scale.checkpoint.stored import open_weights
from diffmoe_scale.convert.export import select_weights, write_export
from diffmoe_scale.convert.inspect import compare, inspect, layer_of, module_of, open_any
from tests.convert.reference import drawn_state, namespace, training_file
from tests.convert.runs import STEPS
from tools.inspect_checkpoint import main

State = dict[str, torch.Tensor]
THRESHOLD = "buffer/transformer.blocks.1.feed_forward.router.predictor.expert_threshold_E"


def test_a_run_s_checkpoint(run: Path, state: State) -> None:
    found = inspect(open_any(run))
    assert (found["kind"], found["step"], found["tensors"]) == ("run's checkpoint", STEPS[-1], len(state))
    assert found["facts"]["layout"] == {"world_size": 1}
    for family in ("master", "ema"):
        count = sum(tensor.numel() for name, tensor in state.items() if name.startswith(family))
        assert found["parameters_by_family"][family] == count
    squares = sum(
        float(tensor.double().square().sum())
        for name, tensor in state.items()
        if name.startswith("ema/transformer.blocks.1.")
    )
    assert math.isclose(found["norms_by_layer"]["ema/transformer.blocks.1"], math.sqrt(squares))
    assert found["thresholds"] == {THRESHOLD: pytest.approx([0.3] * 4)}
    assert found["not_finite"] == {}
    experts = "ema/transformer.blocks.*.feed_forward.experts"
    assert found["parameters_by_module"][experts] == 4 * (2 * 32 * 128 + 128 + 32)


def test_every_format_is_told(run: Path, tmp_path: Path) -> None:
    write_export(select_weights(open_weights(run), "ema"), tmp_path / "a.safetensors")
    training_file(tmp_path / "b.pt", drawn_state("diffmoe"), arguments=namespace(config="x.yaml"))
    torch.save(drawn_state("token_choice"), tmp_path / "c.pt")
    save_file(drawn_state(), tmp_path / "d.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "e.safetensors")
    kinds = {path.name: open_any(path).kind for path in sorted(tmp_path.iterdir())}
    assert kinds == {
        "a.safetensors": "export of this program",
        "b.pt": "training checkpoint of DiffMoE",
        "c.pt": "state dict of EC-DiT or TC-DiT",
        "d.safetensors": "safetensors of DiT or SiT",
        "e.safetensors": "safetensors of an unknown model",
    }
    assert open_any(tmp_path / "b.pt").facts["arguments"] == {"config": "x.yaml"}


def test_numbers_that_are_none_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.ones(4)
    weight[1], weight[2] = torch.nan, torch.inf
    save_file({"blocks.0.w": weight, "v": torch.ones(2)}, tmp_path / "a.safetensors")
    assert main([str(tmp_path / "a.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["not_finite"] == {"blocks.0.w": 2}
    assert found["norms_by_layer"] == {"blocks.0": None, "v": math.sqrt(2)}
    assert main([str(tmp_path / "a.safetensors")]) == 0
    assert "NaN or infinite numbers:\n  blocks.0.w  2" in capsys.readouterr().out


def test_thresholds_and_differences_without_a_number_are_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON has neither NaN nor Infinity; a NaN at the same place is no difference."""
    one = {"same": torch.tensor([1.0, torch.nan]), "w": torch.tensor([1.0, torch.nan])}
    one["a.expert_threshold"] = torch.tensor([torch.nan, -torch.inf, 0.25])
    for name, change in (("one", {}), ("other", {"w": torch.ones(2), "n": 3 * torch.ones(1)})):
        torch.save(one | {"n": torch.ones(1)} | change, tmp_path / f"{name}.pt")
    paths = [str(tmp_path / "one.pt"), str(tmp_path / "other.pt")]

    def refuse(number: str) -> None:
        raise AssertionError(number)

    assert main([paths[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["thresholds"] == {"ema/a.expert_threshold": [None, None, 0.25]}
    assert main([*paths, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert (found["equal"], found["relative_difference"]) == (2, {"ema/n": 2.0, "ema/w": None})
    assert main([paths[0]]) == main(paths) == 0
    assert "relative difference:\n  ema/w  not finite\n  ema/n  2\n" in capsys.readouterr().out


def test_two_checkpoints_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2), "c": torch.ones(1), "d": torch.ones(2)}
    other = {"a": torch.tensor([3.0, 4.5]), "b": torch.ones(2), "d": torch.ones(3), "e": torch.ones(1)}
    for name, tensors in (("one", one), ("other", other)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / "one.safetensors", tmp_path / "other.safetensors"]
    assert compare(*map(open_any, paths)) == {
        "only_in_first": ["c"],
        "only_in_second": ["e"],
        "other_shape": {"d": [[2], [3]]},
        "equal": 1,
        "relative_difference": {"a": 0.1},
    }
    assert main([str(path) for path in paths]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "1 tensor(s) are equal",
        "only in the first: c",
        "only in the second: e",
    ]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, said in ((tmp_path, "holds no weights"), (tmp_path / "none", "does not exist")):
        assert main([str(path)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        (
            "transformer.blocks.3.attention.qkv.weight",
            "transformer.blocks.3",
            "transformer.blocks.*.attention",
        ),
        ("blocks.1.mlp.experts.2.fc1.weight", "blocks.1", "blocks.*.mlp.experts"),
        ("transformer.final_projection.bias", "transformer.final_projection", "transformer.final_projection"),
        ("pos_embed", "pos_embed", "pos_embed"),
    ],
)
def test_tensors_are_grouped_by_layer_and_module(name: str, layer: str, module: str) -> None:
    assert (layer_of(name), module_of(name)) == (layer, module)
