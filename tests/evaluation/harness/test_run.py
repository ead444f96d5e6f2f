"""Evaluations of three checkpoints: nothing twice, whoever is killed, and parts that make one whole."""

from pathlib import Path

import pytest

from diffmoe_scale.config.load import load_run_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.evaluation.harness.drawing import Part
from diffmoe_scale.evaluation.scene_scores import evaluate as evaluate_scenes
from diffmoe_scale.sampling.loading import load_pipeline
from tests.evaluation.harness.runs import STEPS, evaluate, train, write_config
from tests.ranks import run_alone, run_on_ranks

JOBS, PICTURES = len(STEPS) * 2, 6
"""Three checkpoints by two thresholds; one prompt of each of the six suites of scenes."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_on_ranks(train, 1, str(folder))
    return folder / "run"


def kill_twice(config: Path) -> list[list[tuple[str, str]]]:
    return [evaluate(config, batches=count)[0] for count in (3, 4, None, None)]


def test_what_is_killed_twice_and_started_again_repeats_nothing(run: Path, tmp_path: Path) -> None:
    drawn = run_alone(kill_twice, write_config(tmp_path, run))
    together = [picture for part in drawn for picture in part]
    assert len(together) == len(set(together)) == JOBS * PICTURES
    assert len(drawn[0]) and len(drawn[1]) and len(drawn[2]) and not drawn[3]


def in_parts(config: Path) -> list[tuple[int, int]]:
    """Pictures drawn, and results that are there, after each of two parts."""
    parts = [evaluate(config, part=Part(index, 2)) for index in range(2)]
    return [(len(drawn), len(results)) for drawn, results, _ in parts]


def test_two_parts_draw_halves_and_the_last_makes_the_results(run: Path, tmp_path: Path) -> None:
    half = JOBS * PICTURES // 2
    assert run_alone(in_parts, write_config(tmp_path, run)) == [(half, 0), (half, JOBS)]


def both_scores(config: Path, run: Path) -> tuple[list[float], list[float], dict[str, float]]:
    _, results, _ = evaluate(config)
    pipeline = load_pipeline(run / "checkpoints/step_00000006")
    found = evaluate_scenes(pipeline, pipeline.config.sampling, prompts_per_suite=3, seed=5)
    table = results[0].scores["exact rule"]
    scores = [estimate.value for estimate in table.groups.values()]
    measured = {"harness": results[0].capacity, "one": found.capacity.average, "calls": results[0].calls}
    return scores, [score.score for score in found.scores.values()], measured | {"one calls": found.calls}


def test_scores_and_capacity_are_those_of_the_single_evaluation(run: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run / "checkpoints/step_00000006",
        evaluation={"seed": 5},
        suites=[{"kind": "scenes", "prompts": 3}],
        sampling={},
    )
    mine, theirs, measured = run_alone(both_scores, config, run)
    assert mine == theirs
    assert measured["harness"] == pytest.approx(measured["one"], rel=1e-5)
    assert measured["calls"] == pytest.approx(measured["one calls"], rel=1e-9)
    assert load_run_config(RunDirectory(run).config).run.steps == max(STEPS)
