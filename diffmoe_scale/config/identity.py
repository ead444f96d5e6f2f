"""The settings that decide what a model's weights mean: all that is not marked as free to change."""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any  # settings of any type

from diffmoe_scale.config.keys import sections
from diffmoe_scale.config.load import config_tree
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.section import FREE, marks_of
from diffmoe_scale.config.text import TextEncoderConfig


def identity_fields() -> dict[str, tuple[str, ...]]:
    """The fields that belong to a model's identity, by section."""
    return {
        name: tuple(field for field, marks in marks_of(section).items() if FREE not in marks)
        for name, section in sections().items()
        if not section.is_free
    }


def model_settings(config: Config, *, tokenizer: Path, frozen: Mapping[str, str]) -> dict[str, Any]:
    """The identity of a config's model, its tokenizer among them; kept in checkpoints, and compared.

    `frozen` are the fingerprints of the networks that are not trained, by their section. A checkpoint is
    compared by the settings that it holds: one that was written before a setting existed has what was the
    only way then.
    """
    # One encoder is the same model however it is written.
    tree = config_tree(replace(config, text=config.text.plainest()))
    settings = {
        section: {key: tree[section][key] for key in keys} for section, keys in identity_fields().items()
    }
    entry_keys = [name for name, marks in marks_of(TextEncoderConfig).items() if FREE not in marks]
    settings["text"]["encoders"] = [
        {key: entry[key] for key in entry_keys} for entry in settings["text"]["encoders"]
    ]
    settings["text"]["tokenizer_sha256"] = (
        sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.is_file() else ""
    )
    if settings["autoencoder"]["kind"] == "diffusers":
        # As the first checkpoints have it; the fingerprint tells autoencoders apart.
        settings["autoencoder"]["kind"] = "kl"
    for section, fingerprint in frozen.items():
        settings[section]["fingerprint"] = fingerprint
    return settings
