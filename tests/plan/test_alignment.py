"""What alignment costs, against the modules themselves."""

import json
from pathlib import Path
from typing import Any  # JSON values

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffmoe_scale.config.load import load_config
from diffmoe_scale.encoders.text.folder import ModelFolder
from diffmoe_scale.plan import alignment
from diffmoe_scale.plan.alignment import alignment_bytes, alignment_flops, describe_alignment
from diffmoe_scale.plan.frozen import frozen_bytes
from diffmoe_scale.train.alignment import Projector
from tests.encoders.vision.models import write_teacher


def test_encoder_and_projector_are_counted(tmp_path: Path) -> None:
    """32 x 32 pixels in patches of 4: 64 tokens. The encoder's class token and its patch embedding are left
    out, a sixth here."""
    network = write_teacher(tmp_path)
    settings = [f"alignment.encoder={tmp_path}", "alignment.projector_width=48", "alignment.end_step=900"]
    config = load_config(None, settings)
    projector = Projector(config.model.width, 48, 24)
    weights = sum(parameter.numel() for parameter in projector.parameters() if parameter.dim() == 2)
    assert alignment_bytes(config) == 16 * weights
    encoder_bytes = 4 * sum(parameter.numel() for parameter in network.parameters())
    assert frozen_bytes(config) == 16 * weights + encoder_bytes
    encoder, projected = alignment_flops(config)
    assert projected == 6 * 64 * weights
    network.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 56, 56))
    assert 0.8 * counter.get_total_flops() < encoder <= counter.get_total_flops()
    assert "alignment to step 900: " in describe_alignment(config)[0]


def test_without_a_folder_it_is_said(tmp_path: Path) -> None:
    config = load_config(None, [f"alignment.encoder={tmp_path / 'none'}"])
    assert frozen_bytes(config) is None and "is not there" in describe_alignment(config)[0]
    assert describe_alignment(load_config(None, [])) == [] and alignment_bytes(load_config(None, [])) == 0


@pytest.mark.parametrize(
    ("mlp", "hidden"), [({"intermediate_size": 20, "mlp_ratio": 9}, 20), ({"mlp_ratio": 3}, 24), ({}, 32)]
)
def test_the_encoders_mlp_is_as_wide_as_its_settings_say(
    mlp: dict[str, int], hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"hidden_size": 8, "num_hidden_layers": 2, **mlp}
    folder = ModelFolder(Path("teacher"), "alignment.encoder", settings, ())
    monkeypatch.setattr(alignment, "open_folder", lambda path, setting: folder)
    config = load_config(None, ["alignment.encoder=teacher"])
    products = 2 * 64 * (4 * 8 * 8 + 2 * 8 * hidden) + 2 * (2 * 64 * 64 * 8)
    assert alignment_flops(config)[0] == 2 * products


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"mlp_ratio": [4]}, "mlp_ratio"),
        ({"intermediate_size": 1.5}, "intermediate_size"),
    ],
)
def test_sizes_that_are_none_are_named(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    write_teacher(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    config = load_config(None, [f"alignment.encoder={tmp_path}"])
    for count in (alignment_bytes, describe_alignment):
        with pytest.raises(
            ValueError, match=rf"alignment\.encoder is .*{tmp_path.name}.* for {name}; expected"
        ):
            count(config)
