"""Settings of a study: `python tools/study.py --config FILE`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any  # Any: values of settings of a training

from diffmoe_scale.config.check import require
from diffmoe_scale.config.keys import check_keys
from diffmoe_scale.config.load import parse_override, validate
from diffmoe_scale.config.section import PATH, Range, Section
from diffmoe_scale.config.yaml_file import read_yaml

NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,39}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class VariantConfig(Section, name="variants.N", is_free=True):
    """One of the models that are compared."""

    name: str
    """Lower-case letters, digits and _; part of the names of its folders."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the training that differ, such as `moe.router: token_choice`."""
    note: str = ""
    """What it is, for the reader of the page."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            NAME.fullmatch(self.name) is not None,
            "variants.N.name",
            self.name,
            "up to 40 lower-case letters, digits and _",
        )


@dataclass(frozen=True, kw_only=True)
class StudySection(Section, name="study", is_free=True):
    """What all variants share, and where everything goes."""

    output: Annotated[str, PATH] = ""
    """Folder of runs, results and page. Running again with it does only what is not there."""
    config: Annotated[str, PATH] = "configs/demo.yaml"
    """File of the training that all variants begin with."""
    scenes: Annotated[str, PATH] = ""
    """Folder of the embedded scenes, which are made there if they are missing; empty makes none."""
    teacher: Annotated[str, PATH] = ""
    """Folder of an encoder of the scenes for `alignment.encoder` of the variants; trained there if it is
    missing and a variant has it, written as {teacher}."""
    teacher_steps: Annotated[int, Range(1, 10**6)] = 600
    """Steps of its training, of 64 pictures."""
    seeds: Annotated[tuple[int, ...], Range(0, 2**63 - 1)] = (0, 1, 2)
    """Each variant is trained once with each: weights, order of the data and noise come from it."""
    baseline: str = ""
    """The variant that the others are compared with; empty is the first."""
    expected: tuple[tuple[str, str], ...] = ()
    """Pairs of variants, the better first: an order that somebody claims, and that is tested."""
    at_once: Annotated[int, Range(1, 256)] = 2
    """Runs that work at the same time, a process each."""
    flops_tolerance: Annotated[float, Range(0, 100)] = 0.05
    """Largest relative difference of a variant's operations a picture from the baseline's."""
    prompts: Annotated[int, Range(2, 10_000)] = 48
    """Prompts of each of the six suites that the last checkpoint is scored by."""
    curve_prompts: Annotated[int, Range(0, 10_000)] = 8
    """The same of the checkpoints before it (checkpoint.every); 0 scores the last alone."""
    evaluation_seed: Annotated[int, Range(0, 2**32 - 1)] = 1
    """Source of prompts and noise of the scores, the same for all."""
    keep_checkpoints: bool = False
    """Keep the checkpoints before the last once they are scored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.output), "study.output", self.output, "the name of a folder")
        require(bool(self.seeds), "study.seeds", self.seeds, "at least one seed, better three")
        require(len(set(self.seeds)) == len(self.seeds), "study.seeds", self.seeds, "each seed once")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """All settings of a study."""

    study: StudySection
    variants: tuple[VariantConfig, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the training for all variants, such as `run.steps: 1200`; a variant's own win."""

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        require(bool(names), "variants", names, "at least one, as '- name: dense'")
        for name in names:
            require(names.count(name) == 1, "variants", name, "each name once")
        if self.study.baseline:
            self._check_name("study.baseline", self.study.baseline)
        for pair in self.study.expected:
            for name in pair:
                self._check_name("study.expected", name)

    def _check_name(self, setting: str, name: str) -> None:
        names = [variant.name for variant in self.variants]
        require(name in names, setting, name, f"one of {', '.join(names)}")

    @property
    def baseline(self) -> str:
        return self.study.baseline or self.variants[0].name


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The settings of a YAML file. An override of section `study` replaces the file's, others those of the
    training for all variants.

    Raises: ValueError naming the setting; an unknown key names the nearest right one.
    """
    tree = read_yaml(path)
    check_keys(tree, StudyConfig, root=StudyConfig)
    for override in overrides:
        if override.startswith("study."):
            _, key, value = parse_override(override, StudyConfig)
            tree.setdefault("study", {})[key] = value
        else:
            section, key, value = parse_override(override)
            settings = tree["settings"] = tree.get("settings") or {}
            require(isinstance(settings, dict), "settings", settings, "lines such as 'run.steps: 1200'")
            settings[f"{section}.{key}"] = value
    return validate(StudyConfig, tree)
