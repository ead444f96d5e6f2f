"""Folders of diffusers: every variant of the model answers as ours does, and comes back to the bit."""

import json
import random
from pathlib import Path

import pytest
import torch

from diffmoe_scale.checkpoint.stored import StoredWeights
from diffmoe_scale.config.identity import identity_fields
from diffmoe_scale.config.routers import GATES, RULES, WITH_POOL
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.convert.pipeline_config import HELD
from diffmoe_scale.convert.pipeline_import import open_folder
from diffmoe_scale.convert.pipeline_verify import ask_folder
from diffmoe_scale.convert.verify import ask, difference, make_question
from tests.convert.pipelines import JOINT, TEXT, VARIANTS, draw_weights, write_pipeline

ROUND_OFF = 1e-5


def assert_same_tensors(got: StoredWeights, expected: StoredWeights) -> None:
    assert got.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        found = got.tensors[name].read()
        assert found.dtype == tensor.dtype and torch.equal(found, tensor.read()), name
    assert (got.config, got.settings, got.step) == (expected.config, expected.settings, expected.step)
    assert got.tokenizer == expected.tokenizer


def check(settings: list[str], tokenizer: Path, folder: Path, *, layout: str) -> None:
    stored = draw_weights(settings, tokenizer)
    write_pipeline(stored, folder, layout=layout)
    question = make_question(stored.config)
    answer = ask_folder(folder, stored.config, question)
    assert difference(answer, ask(stored, "ema", question)) < ROUND_OFF
    assert_same_tensors(open_folder(folder), stored)


@pytest.mark.parametrize("layout", ["stacked", "separate"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_answers_as_ours_and_comes_back(
    name: str, layout: str, tmp_path: Path, tokenizer: Path
) -> None:
    check(VARIANTS[name], tokenizer, tmp_path / "a", layout=layout)


@pytest.mark.parametrize("rule", ["threshold", "threshold_count", "interval", "static"])
def test_experts_choose_by_every_rule(rule: str, tmp_path: Path, tokenizer: Path) -> None:
    settings = [f"sampling.selection={rule}", "sampling.gamma=0.4", "moe.capacity=1.5"]
    check(settings, tokenizer, tmp_path / "a", layout="stacked")


def draw_settings(generator: random.Random) -> list[str]:
    """One of the models that the config offers."""
    router = generator.choice(list(RULES))
    is_joint, is_text = generator.random() < 0.3, generator.random() < 0.5
    settings = JOINT if is_joint else TEXT if is_text else []
    choices = {
        "model.positions": ["sincos", "rope2d"],
        "model.qk_norm": ["none", "rms"],
        "model.modulation": ["block", "shared"],
        "model.size_conditioning": ["false", "true"],
        "model.time_frequencies": ["dit", "diffusers"],
        "model.depth": ["2", "3", "4"],
        "model.feed_forward_ratio": ["1", "4"],
        "moe.num_experts": ["0", "2", "4"],
        "moe.every": ["1", "2"],
        "moe.gate": ["softmax", "sigmoid", "identity"],
        "moe.router_input": ["modulated", "decoupled"],
        "moe.shared_experts": ["0", "1", "2"],
        "moe.expert_width_ratio": ["0.5", "2"],
        "moe.activation": ["gelu", "swiglu"],
        "moe.top_k": ["1", "2"],
        "moe.capacity": ["0.5", "1.5"],
    }
    drawn = [f"{key}={generator.choice(values)}" for key, values in choices.items()]
    if "moe.num_experts=0" in drawn:
        drawn = [word for word in drawn if "top_k" not in word and "capacity" not in word]
    if router in GATES or router in ("expert_race", "promoe"):
        drawn = [word for word in drawn if "gate" not in word and "router_input" not in word]
    if router == "promoe":
        drawn = [word for word in drawn if "top_k" not in word]
    if router == "diffmoe":
        drawn.append(f"moe.predictor_width={generator.choice(['1', '0.5'])}")
    if router in WITH_POOL:
        rule = generator.choice(RULES[router])
        drawn += [f"moe.pool={generator.choice(['rank', 'sample'])}", f"sampling.selection={rule}"]
    if is_text and not is_joint:
        drawn.append(f"model.text_projection={generator.choice(['true', 'false'])}")
    diffusion = generator.choice(["kind=ddpm", "prediction=sample", "prediction=velocity"])
    return [*settings, *drawn, f"moe.router={router}", f"diffusion.{diffusion}"]


def test_every_setting_of_a_model_is_held_or_refused(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one fails here until a folder has its code, or the sentence that refuses it is wanted."""
    assert {section: set(keys) for section, keys in identity_fields().items()} == HELD
    monkeypatch.setitem(HELD, "model", HELD["model"] - {"qk_norm"})
    write_pipeline(draw_weights([], tokenizer), tmp_path / "plain")
    with pytest.raises(ValueError, match=r"model.qk_norm is 'rms', for which a diffusers folder has no code"):
        write_pipeline(draw_weights(["model.qk_norm=rms"], tokenizer), tmp_path / "a")


@pytest.mark.slow
def test_models_drawn_from_the_config_answer_as_ours_and_come_back(tmp_path: Path, tokenizer: Path) -> None:
    generator = random.Random(0)
    for number in range(200):
        layout = generator.choice(["stacked", "separate"])
        check(draw_settings(generator), tokenizer, tmp_path / f"{number}", layout=layout)


def test_a_run_goes_there_and_back(run: Path, tmp_path: Path) -> None:
    lines = convert(run, tmp_path / "a", Options(to="diffusers"))
    assert any("differs by" in line and "tolerance 0.0001" in line for line in lines)
    convert(tmp_path / "a", tmp_path / "back.safetensors", Options())
    convert(run, tmp_path / "direct.safetensors", Options())
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "direct.safetensors").read_bytes()


def test_shards_have_at_most_their_size(tmp_path: Path, tokenizer: Path) -> None:
    stored = draw_weights(TEXT, tokenizer)
    limit = 40_000
    write_pipeline(stored, tmp_path / "a", shard_gib=limit / 2**30)
    files = sorted((tmp_path / "a" / "transformer").glob("*.safetensors"))
    index = json.loads(next((tmp_path / "a" / "transformer").glob("*.index.json")).read_text())
    assert len(files) > 3 and {path.name for path in files} == set(index["weight_map"].values())
    assert_same_tensors(open_folder(tmp_path / "a"), stored)


def test_bf16_rounds_weights_and_leaves_thresholds(run: Path, tmp_path: Path) -> None:
    lines = convert(run, tmp_path / "a", Options(to="diffusers", dtype="bf16"))
    assert any("rounding changes the output" in line for line in lines)
    stored = open_folder(tmp_path / "a")
    dtypes = {name.split("/")[0]: tensor.dtype for name, tensor in stored.tensors.items()}
    assert dtypes["ema"] == torch.bfloat16
    thresholds = [tensor for name, tensor in stored.tensors.items() if name.endswith("threshold_E")]
    assert thresholds and all(tensor.dtype == torch.float32 for tensor in thresholds)


def test_one_family_goes_into_a_folder(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one family of weights, not master and ema"):
        convert(run, tmp_path / "a", Options(to="diffusers", weights="all"))
    convert(run, tmp_path / "all.safetensors", Options(weights="all"))
    convert(tmp_path / "all.safetensors", tmp_path / "a", Options(to="diffusers", weights="master"))
    assert open_folder(tmp_path / "a").families == ["master", "buffer"]
