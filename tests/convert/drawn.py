"""Models drawn from all that the settings offer: every value of every setting of a model's identity."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints  # Any: types and values of fields

import torch

from diffmoe_scale.checkpoint.stored import StoredWeights
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.identity import identity_fields, model_settings
from diffmoe_scale.config.keys import sections
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.verify import VOCABULARY, build_meta
from diffmoe_scale.encoders.text.tokenizer import open_pieces
from diffmoe_scale.nn.generator import named_generator
from diffmoe_scale.plan.assumed import streams_of
from tests.convert.frozen import Places

USUAL = 0.75
"""How often a setting is the first of its values."""
ATTEMPTS = 3000
NUMBERS: dict[str, tuple[object, ...]] = {
    "model.image_size": (16, 32),
    "model.position_size": (0, 16, 32, 64),
    "model.patch_size": (4, 2, 8),
    "model.depth": (4, 1, 2, 3, 6),
    "model.width": (16, 24),
    "model.feed_forward_ratio": (4.0, 2.0, 1.3),
    "moe.num_experts": (4, 0, 2, 12),
    "moe.every": (2, 1, 3),
    "moe.first_dense": (0, 2, 3),
    "moe.routed_scale": (2.0, 1.0),
    "moe.shared_experts": (0, 1, 2),
    "moe.expert_width_ratio": (4.0, 1.0, 0.7),
    "moe.predictor_width": (1.0, 0.25),
    "diffusion.time_scale": (1.0, 1000.0),
    "text.max_tokens": (24, 8),
    "text.width": (16, 32),
    "text.depth": (1, 2),
    "text.heads": (2, 1),
}
"""Values of what is no choice among names."""
FIRST = {"model.conditioning": "class"}
"""Where the usual value is not the default: classes can be held by more formats."""
FOLLOWS = {"model.num_classes", "model.channels", "model.heads", "text.open_clip_name", "text.kind"}
"""Of an identity, what other settings decide here. Encoders of each kind are in `text.encoders`."""
FREE = {"moe.threshold_bias_correction": (True, False)}
"""No part of an identity, but files of DiT have thresholds without it."""


def choices_of(kind: Any) -> tuple[object, ...]:
    """The values of a setting that is a choice: a new one is drawn without being listed here."""
    if kind is bool:
        return (False, True)
    return get_args(kind) if get_origin(kind) is Literal else ()


def offered(places: Places) -> dict[str, tuple[object, ...]]:
    """Values by setting, the usual one first. Raises: KeyError for a setting that is none of a choice and has
    no values here."""
    values: dict[str, tuple[object, ...]] = dict(FREE)
    kinds = sections()
    for section, keys in identity_fields().items():
        hints = get_type_hints(kinds[section])
        for key in keys:
            name = f"{section}.{key}"
            if name in FOLLOWS:
                continue
            if name == "text.encoders":
                values[name] = ("[]", *places.encoders)
                continue
            choices = choices_of(hints[key])
            default = FIRST.get(name, getattr(kinds[section], key))
            choices = (default, *(value for value in choices if value != default)) if choices else ()
            values[name] = choices or NUMBERS[name]
    return values


def every_value(values: Mapping[str, Sequence[object]]) -> Iterator[dict[str, object]]:
    """Each value that is not the usual one, by itself."""
    for name, choices in values.items():
        for value in choices[1:]:
            yield {name: value}


def draw_config(rng: random.Random, places: Places, forced: Mapping[str, object]) -> Config:
    """A config that is valid and has the settings of `forced`, by trying."""
    values, reason = offered(places), ""
    for _ in range(ATTEMPTS):
        drawn = {
            name: choices[0] if rng.random() < USUAL else rng.choice(choices)
            for name, choices in values.items()
        } | dict(forced)
        try:
            config = load_config(None, _words(drawn, values, forced, places))
            build_meta(config, {})
            streams_of(config.text)
        except ValueError as error:
            reason = str(error)
            continue
        return config
    raise AssertionError(f"no config with {dict(forced)}: {reason}")


def _words(
    drawn: Mapping[str, object],
    values: Mapping[str, Sequence[object]],
    forced: Mapping[str, object],
    places: Places,
) -> list[str]:
    """Usual choices are left out, so that settings that follow a router or a process can."""
    is_usual = {name: drawn[name] == values[name][0] and name not in NUMBERS for name in drawn}
    words = [
        f"{name}={value}"
        for name, value in drawn.items()
        if name in forced or name in FIRST or not is_usual[name]
    ]
    if drawn["autoencoder.kind"] != "pixels":
        words += [f"autoencoder.path={places.autoencoder}", f"model.channels={places.channels}"]
    if drawn["text.encoders"] != "[]":  # each has its own
        words = [word for word in words if not word.startswith("text.max_tokens")]
    is_class = drawn["model.conditioning"] == "class"
    return [*words, f"model.num_classes={10 if is_class else 0}", "model.heads=2", "text.vocabulary=300"]


def draw_weights(config: Config, families: Sequence[str], tokenizer: Path) -> StoredWeights:
    """Weights of a config as they would be opened from a checkpoint; every element has a value of its own."""
    is_trained = config.model.conditioning == "text" and config.text.trained is not None
    known: dict[str, LazyTensor] = {}
    if is_trained:
        pieces = open_pieces(tokenizer).vocab_size()
        known[VOCABULARY] = LazyTensor((pieces, 1), torch.float32, lambda: torch.empty(0))
    denoiser = build_meta(config, known)
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
    own = tokenizer if is_trained else Path("no file")
    return StoredWeights(
        path=Path("drawn"),
        tensors=dict(sorted(tensors.items())),
        config=config,
        settings=model_settings(config, tokenizer=own, frozen={}),
        step=3,
        tokenizer=tokenizer.read_bytes() if is_trained else b"",
    )
