"""The variants of a study as trainings, and its rows: a variant with a seed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any  # trees of settings

from diffmoe_scale.config.check import require
from diffmoe_scale.config.load import config_tree, make_config
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.study import StudyConfig, StudySection, VariantConfig
from diffmoe_scale.config.yaml_file import read_yaml
from diffmoe_scale.json_text import parse_json

HEX = 10
TEACHER = "{teacher}"
"""Stands for the folder study.teacher in the settings of a variant."""


@dataclass(frozen=True)
class Variant:
    """A model of the study, and how it is trained."""

    name: str
    note: str
    settings: dict[str, Any]
    config: Config
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """The settings of sampling that some variant of the study names, as this one has them: a run directory
    holds those of one of the variants that share it."""


@dataclass(frozen=True)
class Row:
    """A variant with a seed. Variants that differ in sampling alone share a training."""

    variant: Variant
    seed: int
    study: StudySection
    trained_as: str
    """The first variant with the same training."""

    @cached_property
    def config(self) -> Config:
        """Of its training, in its folder."""
        config = self.variant.config
        return replace(
            config,
            run=replace(config.run, seed=self.seed, directory=str(self.run)),
            sampling=_validated(config),
        )

    @cached_property
    def training(self) -> str:
        """Fingerprint of its training."""
        return fingerprint(self.variant.config, self.seed, self.study)

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that its numbers depend on."""
        study = self.study
        asked = [study.prompts, study.curve_prompts, study.evaluation_seed]
        return _hash([self.training, _changed(self.variant.config)["sampling"], asked])

    @property
    def name(self) -> str:
        return f"{self.variant.name}-seed{self.seed}-{self.fingerprint}"

    @property
    def run(self) -> Path:
        """Its run directory."""
        return Path(self.study.output) / "runs" / f"{self.trained_as}-seed{self.seed}-{self.training}"

    @property
    def scores(self) -> Path:
        """Folder of its evaluations."""
        return Path(self.study.output) / "scores" / self.name

    @property
    def log(self) -> Path:
        """What its commands printed."""
        return Path(self.study.output) / "logs" / f"{self.name}.txt"


def make_variants(config: StudyConfig) -> list[Variant]:
    """Raises: ValueError for a setting that does not fit, naming its variant."""
    tree = read_yaml(Path(config.study.config))
    variants = [_variant(tree, config, variant) for variant in config.variants]
    keys = {key for variant in variants for key in variant.settings if key.startswith("sampling.")}
    names = sorted(key.removeprefix("sampling.") for key in keys)
    variants = [
        replace(variant, sampling={name: getattr(variant.config.sampling, name) for name in names})
        for variant in variants
    ]
    first = variants[0]
    for variant in variants:
        for key in ("steps", "global_batch"):
            require(
                getattr(variant.config.run, key) == getattr(first.config.run, key),
                f"run.{key} of variant {variant.name}",
                getattr(variant.config.run, key),
                f"{getattr(first.config.run, key)}, as {first.name} has: variants are trained equally long",
            )
    return variants


def make_rows(config: StudyConfig, variants: Sequence[Variant]) -> list[Row]:
    """All of them, seed by seed: a study that is stopped early has some seeds of every variant."""
    rows = []
    for seed in config.study.seeds:
        trained: dict[str, str] = {}
        for variant in variants:
            first = trained.setdefault(fingerprint(variant.config, seed, config.study), variant.name)
            rows.append(Row(variant, seed, config.study, first))
    names: dict[str, str] = {}
    for row in rows:
        same = names.setdefault(row.fingerprint, row.variant.name)
        if same != row.variant.name:
            raise ValueError(
                f"variants {same} and {row.variant.name} have the same settings; expected one of them, or a "
                "setting that differs"
            )
    return rows


def _validated(config: Config) -> SamplingConfig:
    """With the rule of choosing experts that a training validates beside its own. `static` is its own: so a
    training that is shared with `threshold` has the losses of both."""
    if config.moe.has_thresholds and config.sampling.selection == "static":
        return replace(config.sampling, selection="threshold")
    return config.sampling


def fingerprint(config: Config, seed: int, study: StudySection) -> str:
    """Of a training: settings at their default are left out, so that a setting that a later version adds
    does not make done work undone."""
    changed: dict[str, Any] = _changed(config)
    changed.pop("sampling")
    changed["run"] = {key: value for key, value in changed["run"].items() if key != "directory"}
    changed["run"] |= {"seed": seed}
    rule = _validated(config).selection
    if config.moe.has_thresholds and rule != "threshold":
        changed["validation"] = [rule, *([config.sampling.gamma] if rule == "interval" else [])]
    if study.teacher and config.alignment.encoder == study.teacher:
        changed["teacher"] = study.teacher_steps
    return _hash([changed])


def _changed(config: Config) -> dict[str, dict[str, Any]]:
    """By section, the settings that are not at their default."""
    defaults = config_tree(Config())
    return {
        section: {key: value for key, value in settings.items() if value != defaults[section].get(key)}
        for section, settings in config_tree(config).items()
    }


def _hash(content: object) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:HEX]


def _variant(tree: dict[str, Any], config: StudyConfig, variant: VariantConfig) -> Variant:
    if TEACHER in variant.settings.values() or TEACHER in config.settings.values():
        require(bool(config.study.teacher), "study.teacher", "", f"a folder, for {TEACHER} of {variant.name}")
    settings = {
        key: config.study.teacher if value == TEACHER else value
        for key, value in (config.settings | variant.settings).items()
    }
    try:
        for key in ("run.directory", "run.seed"):
            require(key not in settings, key, settings.get(key), "nothing: the study sets it")
        words = [f"{key}={_as_json(key, value)}" for key, value in settings.items()]
        made = make_config(parse_json(_as_json(config.study.config, tree)), words)
    except ValueError as error:
        raise ValueError(f"variant {variant.name}: {error}") from error
    return Variant(variant.name, variant.note, settings, made)


def _as_json(name: str, value: Any) -> str:
    """Raises: ValueError for a date, a set or bytes, which YAML reads of text without quotes."""
    try:
        return json.dumps(value)
    except TypeError as error:
        raise ValueError(
            f"{name} is {value!r:.80}; expected text, numbers, true or false, and lists: quote what is text"
        ) from error
