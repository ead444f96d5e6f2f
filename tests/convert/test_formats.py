"""Every kind of model goes through every format that can hold it and comes back to the bit; a format that
cannot says which setting is in the way."""

import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffmoe_scale.checkpoint.stored import StoredWeights, open_weights
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.identity import identity_fields, model_settings
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.export import write_export
from diffmoe_scale.convert.foreign import export_foreign, import_foreign, open_foreign
from diffmoe_scale.convert.megatron import open_megatron, write_megatron
from diffmoe_scale.convert.torch_file import write_torch_file
from diffmoe_scale.convert.verify import build_meta
from diffmoe_scale.nn.generator import named_generator

CASES = 200
SIZES = ["text.vocabulary=300", "text.width=16", "text.depth=1", "text.heads=2", "model.heads=2"]
USUAL = 0.75
"""How often a setting is the first of its values."""
VALUES: dict[str, tuple[object, ...]] = {
    "model.conditioning": ("class", "text"),
    "model.image_size": (16, 32),
    "model.patch_size": (4, 2, 8),
    "model.depth": (4, 1, 2, 3, 6),
    "model.width": (16, 24),
    "model.attention": ("cross", "joint"),
    "model.qk_norm": ("none", "rms"),
    "model.positions": ("sincos", "rope2d"),
    "model.modulation": ("block", "shared"),
    "model.feed_forward_ratio": (4.0, 2.0, 1.3),
    "model.text_projection": (False, True),
    "model.size_conditioning": (False, True),
    "model.time_frequencies": ("dit", "diffusers"),
    "moe.num_experts": (4, 0, 2, 12),
    "moe.every": (2, 1, 3),
    "moe.first_dense": (0, 2, 3),
    "moe.router": ("diffmoe", "expert_choice", "token_choice"),
    "moe.routed_scale": (2.0, 1.0),
    "moe.gate": ("softmax", "sigmoid", "identity"),
    "moe.router_input": ("modulated", "decoupled"),
    "moe.shared_experts": (0, 1, 2),
    "moe.expert_width_ratio": (4.0, 1.0, 0.7),
    "moe.activation": ("gelu", "swiglu"),
    "moe.predictor_width": (1.0, 0.25),
    "moe.threshold_bias_correction": (True, False),
    "diffusion.kind": ("flow", "ddpm"),
    "diffusion.time_scale": (1.0, 1000.0),
}
FOLLOWS = {"model.num_classes", "model.channels", "model.heads"}
"""Of an identity, what other settings here decide."""


def draw_config(rng: random.Random) -> Config:
    """A config that is valid, by trying."""
    while True:
        drawn = {
            name: values[0] if rng.random() < USUAL else rng.choice(values) for name, values in VALUES.items()
        }
        words = [f"{name}={value}" for name, value in drawn.items()]
        words.append(f"model.num_classes={10 if drawn['model.conditioning'] == 'class' else 0}")
        has_predictor = drawn["moe.router"] == "diffmoe"
        words.append(f"sampling.selection={'threshold' if has_predictor else 'static'}")
        try:
            config = load_config(None, [*SIZES, *words])
            build_meta(config, {})
        except ValueError:
            continue
        return config


def draw_weights(config: Config, families: list[str]) -> StoredWeights:
    denoiser = build_meta(config, {})
    tensors = {
        f"{family}/{name}": LazyTensor.of(
            torch.randn(parameter.shape, generator=named_generator(0, family, name))
        )
        for family in families
        for name, parameter in denoiser.canonical_parameters().items()
    }
    for name, buffer in denoiser.canonical_buffers().items():
        value = 7 if buffer.dtype == torch.int64 else 0.25
        tensors[f"buffer/{name}"] = LazyTensor.of(torch.full(buffer.shape, value, dtype=buffer.dtype))
    identity = model_settings(config, tokenizer=Path("no file"), frozen={})
    return StoredWeights(path=Path("drawn"), tensors=tensors, config=config, settings=identity, step=3)


def assert_same_bits(got: Mapping[str, LazyTensor], expected: Mapping[str, LazyTensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        one, other = got[name].read(), tensor.read()
        assert one.dtype == other.dtype and torch.equal(one, other), name


def check_own_formats(stored: StoredWeights, folder: Path) -> None:
    write_export(stored, folder / "a.safetensors")
    write_export(stored, folder / "a", shard_gib=20_000 / 2**30)
    for path in (folder / "a.safetensors", folder / "a"):
        back = open_weights(path)
        assert_same_bits(back.tensors, stored.tensors)
        assert (back.config, back.settings, back.step) == (stored.config, stored.settings, stored.step)


def check_megatron(stored: StoredWeights, folder: Path) -> None:
    families = [name for name in stored.families if name != "buffer"]
    if len(families) > 1:
        with pytest.raises(ValueError, match="give --weights"):
            write_megatron(stored, folder / "m")
        return
    write_megatron(stored, folder / "m")
    back = open_megatron(folder / "m")
    assert_same_bits(back.tensors, stored.tensors)
    assert (back.config, back.settings, back.step) == (stored.config, stored.settings, stored.step)


def refusal_of_dit(stored: StoredWeights) -> str:
    try:
        export_foreign(stored)
    except ValueError as error:
        return str(error)
    return ""


def check_dit(stored: StoredWeights, folder: Path) -> bool:
    """Whether the names of DiT can hold it; if not, the sentence names a setting that is unusual."""
    config = stored.config
    if refusal := refusal_of_dit(stored):
        named = re.findall(r"((?:model|moe|diffusion)\.\w+) is '?([\w.]+)", refusal)
        assert named, refusal
        for name, value in named:
            section, key = name.split(".")
            assert str(getattr(getattr(config, section), key)) == value.rstrip("."), refusal
            assert value != str(VALUES[name][0]), refusal
        return False
    states = export_foreign(stored)
    write_torch_file(folder / "a.pt", states, None)
    words = [f"model.heads={config.model.heads}", f"diffusion.kind={config.diffusion.kind}"]
    words += [f"moe.threshold_decay={config.moe.threshold_decay}"]
    model = open_foreign(folder / "a.pt", words)
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
def test_every_model_comes_back_from_every_format_that_can_hold_it(tmp_path: Path) -> None:
    rng = random.Random(11)
    num_held, num_refused = 0, 0
    for number in range(CASES):
        folder = tmp_path / "case"
        folder.mkdir()
        config = draw_config(rng)
        families = rng.choice([["ema"], ["ema"], ["master"], ["ema", "master"]])
        stored = draw_weights(config, families)
        check_own_formats(stored, folder)
        if number % 4 == 0:
            check_megatron(stored, folder)
        is_held = check_dit(stored, folder)
        num_held += is_held
        num_refused += not is_held
        shutil.rmtree(folder)
    assert num_held >= CASES // 10 and num_refused >= CASES // 10


def test_every_setting_of_an_identity_is_drawn() -> None:
    fields = identity_fields()
    identity = {f"{section}.{key}" for section in ("model", "moe") for key in fields[section]}
    assert identity - VALUES.keys() == FOLLOWS
