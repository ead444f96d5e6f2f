"""A tiny study and rows with made-up numbers."""

from dataclasses import replace
from pathlib import Path

from diffmoe_scale.config.study import StudyConfig, load_study
from diffmoe_scale.scenes.suites import SUITES
from diffmoe_scale.study.record import RowResult, Score
from diffmoe_scale.study.variants import Row

TEXT = """
study:
  output: {folder}/study
  config: {folder}/base.yaml
  seeds: [0, 1]
  expected: [[diffmoe, dense]]
  prompts: 3
  curve_prompts: 2
settings: {{run.steps: 20, checkpoint.every: 10}}
variants:
- name: diffmoe
- {{name: dense, settings: {{moe.num_experts: 0}}}}
- {{name: static, settings: {{sampling.selection: static}}}}
"""


def write_study(folder: Path, text: str = TEXT) -> Path:
    (folder / "base.yaml").write_text("{data: {train: [a.tar], validation: [b.tar]}}", encoding="utf-8")
    (folder / "study.yaml").write_text(text.format(folder=folder), encoding="utf-8")
    return folder / "study.yaml"


def small_study(folder: Path, settings: list[str] | None = None) -> StudyConfig:
    return load_study(write_study(folder), settings or [])


def result_of(row: Row, *, loss: float, score: float) -> RowResult:
    found = Score(step=20, prompts=3, mean=score, suites=dict.fromkeys(SUITES, score), capacity=1.02)
    return RowResult(
        variant=row.variant.name,
        seed=row.seed,
        fingerprint=row.fingerprint,
        training=row.training,
        run=str(row.run),
        steps=20,
        rule="train",
        losses=[(10, 2 * loss), (20, loss)],
        capacities=[(20, 1.0)],
        loss=loss,
        scores=[replace(found, step=10, mean=score / 2), found],
        flops=1e6,
        training_flops=3e6,
        seconds={"training": 60.0, "curve": 5.0, "last": 9.0},
    )
