"""Every kind of model goes through every format that can hold it and comes back to the bit; a format that
cannot says which setting is in the way."""

import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from diffmoe_scale.checkpoint.stored import StoredWeights, open_weights
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.text import TextEncoderConfig
from diffmoe_scale.convert.export import select_weights, write_export
from diffmoe_scale.convert.foreign import export_foreign, import_foreign, open_foreign
from diffmoe_scale.convert.megatron import open_megatron, write_megatron
from diffmoe_scale.convert.pipeline import plan_folder, write_folder
from diffmoe_scale.convert.pipeline_config import MOST_ENCODERS
from diffmoe_scale.convert.pipeline_import import open_folder
from diffmoe_scale.convert.torch_file import write_torch_file
from tests.convert.drawn import draw_config, draw_weights, every_value, offered
from tests.convert.frozen import Places, write_frozen

CASES, PARTS = 200, 8
FAMILIES = (["ema"], ["ema"], ["master"], ["ema", "master"], ["ema", "ema2", "master"])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return write_frozen(tmp_path_factory.mktemp("frozen"))


def assert_same_bits(got: Mapping[str, LazyTensor], expected: Mapping[str, LazyTensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        one, other = got[name].read(), tensor.read()
        assert one.dtype == other.dtype and torch.equal(one, other), name


def assert_same(got: StoredWeights, expected: StoredWeights) -> None:
    assert_same_bits(got.tensors, expected.tensors)
    assert (got.config, got.settings, got.step) == (expected.config, expected.settings, expected.step)
    assert got.tokenizer == expected.tokenizer


def check_own_formats(stored: StoredWeights, folder: Path) -> None:
    write_export(stored, folder / "a.safetensors")
    write_export(stored, folder / "a", shard_gib=20_000 / 2**30)
    for path in (folder / "a.safetensors", folder / "a"):
        assert_same(open_weights(path), stored)


def check_megatron(stored: StoredWeights, folder: Path) -> None:
    write_megatron(stored, folder / "m")
    assert_same(open_megatron(folder / "m"), stored)


def check_diffusers(stored: StoredWeights, folder: Path, layout: str) -> None:
    write_folder(plan_folder(stored, layout=layout), folder / "d", shard_gib=20_000 / 2**30, links=True)
    assert_same(open_folder(folder / "d"), stored)


def refusal_of_dit(stored: StoredWeights) -> str:
    try:
        export_foreign(stored)
    except ValueError as error:
        return str(error)
    return ""


def check_refusal(stored: StoredWeights, refusal: str, usual: Mapping[str, object]) -> None:
    """The sentence names settings with their values, which are unusual; or more families than fit."""
    if "ema2" in refusal and len(stored.families) > 2:
        return
    named = re.findall(r"((?:model|moe|diffusion)\.\w+) is '?([\w.]+)", refusal)
    assert named, refusal
    for name, value in named:
        section, key = name.split(".")
        assert str(getattr(getattr(stored.config, section), key)) == value.rstrip("."), refusal
        assert value != str(usual[name]), refusal


def check_dit(stored: StoredWeights, folder: Path, usual: Mapping[str, object]) -> bool:
    """Whether the names of DiT can hold it."""
    config = stored.config
    if refusal := refusal_of_dit(stored):
        check_refusal(stored, refusal, usual)
        return False
    states = export_foreign(stored)
    write_torch_file(folder / "a.pt", states, None)
    words = [f"model.heads={config.model.heads}", f"diffusion.kind={config.diffusion.kind}"]
    words += [f"moe.threshold_decay={config.moe.threshold_decay}"]
    if config.autoencoder.path:
        words.append(f"autoencoder.path={config.autoencoder.path}")
    model = open_foreign(folder / "a.pt", words)
    assert model.config.model.image_size == config.model.image_size
    back = import_foreign(model)
    # A bare state dict does not say which weights it holds: they count as averages.
    only = next(iter(states)) if len(states) == 1 else "ema"
    for name, tensor in back.tensors.items():
        check_of_dit(name.replace("ema/", f"{only}/", 1), tensor.read(), stored)
    once_more = export_foreign(back)
    for family, state in states.items():
        assert_same_bits(once_more["ema" if len(states) == 1 else family], state)
    return True


def check_of_dit(name: str, got: Tensor, stored: StoredWeights) -> None:
    """Bits, but for what these names have otherwise: time that runs the other way, thresholds without a
    count."""
    if name.startswith("source/"):
        return
    expected = stored.tensors[name].read()
    is_flow = stored.config.diffusion.kind == "flow"
    if name.endswith("threshold_steps"):
        return
    if name.endswith("expert_threshold_E") and stored.config.moe.threshold_bias_correction:
        expected = (expected / torch.tensor(1 - stored.config.moe.threshold_decay**7).double()).float()
    if is_flow and name.endswith("time_embedding.mlp.0.weight"):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    else:
        assert torch.equal(got, expected), name


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_model_comes_back_from_every_format_that_can_hold_it(
    part: int, tmp_path: Path, tokenizer: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value of every setting, among drawn ones of the others, and models that are drawn whole."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # most of the time otherwise
    rng, values = random.Random(part), offered(places)
    usual = {name: choices[0] for name, choices in values.items()}
    forced = list(every_value(values))
    forced += [{} for _ in range(CASES - len(forced))]
    forced, num_held = forced[part::PARTS], 0
    for number, settings in enumerate(forced):
        folder = tmp_path / "case"
        folder.mkdir()
        config = draw_config(rng, places, settings)
        stored = draw_weights(config, rng.choice(FAMILIES), tokenizer)
        one = select_weights(stored, "ema" if "ema" in stored.families else "master")
        check_own_formats(stored, folder)
        check_diffusers(one, folder, rng.choice(["stacked", "separate"]))
        if number % 3 == 0 or "moe.router" in settings:
            check_megatron(one, folder)
        num_held += check_dit(stored, folder, usual)
        shutil.rmtree(folder)
    # Few have the names of DiT: in some parts none.
    assert num_held < len(forced) and (num_held > 0 or part > 0)


def test_more_families_than_a_format_holds_are_refused(
    tmp_path: Path, tokenizer: Path, places: Places
) -> None:
    config = draw_config(random.Random(0), places, {})
    stored = draw_weights(config, ["ema", "master"], tokenizer)
    with pytest.raises(ValueError, match="give --weights"):
        write_megatron(stored, tmp_path / "m")
    with pytest.raises(ValueError, match="give --weights"):
        plan_folder(stored, layout="stacked")


def test_every_choice_of_the_config_is_drawn(places: Places) -> None:
    """A new router or kind of encoder is one of the cases as soon as the config has it."""
    values = offered(places)
    (kinds,) = {get_args(get_type_hints(TextEncoderConfig)["kind"])}
    routers = {"diffmoe", "expert_choice", "token_choice", "dsmoe", "expert_race", "promoe"}
    assert routers | {"expert_threshold"} <= set(values["moe.router"])
    assert {"cross", "joint"} <= set(values["model.attention"])
    for kind in kinds:
        assert any(f"kind: {kind}" in str(entry) for entry in values["text.encoders"])
    assert max(str(entry).count("kind:") for entry in values["text.encoders"]) == MOST_ENCODERS
