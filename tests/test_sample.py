"""Pictures by the command line, from a run that was trained before."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from diffmoe_scale import sample
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train import trainer
from tests.ranks import run_alone, run_on_ranks
from tests.train.runs import text_settings, tiny_config

SETTINGS = ["run.steps=4", "optimizer.warmup_steps=1", "sampling.steps=2"]


def train(context: ParallelContext, settings: list[str]) -> None:
    config = tiny_config(settings)
    trainer.train(config, context, RunDirectory(Path(config.run.directory)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    run_on_ranks(train, 1, [*text_settings(folder), *SETTINGS], expert_parallel=1)
    return folder / "run"


def call(main: Callable[[list[str]], int], commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and what was said of each; for a process of its own."""
    answers = []
    for command in commands:
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            code = main(command)
        answers.append((code, told.getvalue()))
    return answers


def test_each_call_writes_a_grid_of_its_own_and_says_where(run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    base = ["--checkpoint", str(run)]
    commands = [
        [*base, "--prompt", "caption 1"],
        [*base, "--prompt", "caption 2", "--count", "1"],
        [
            *base,
            "--prompt-file",
            str(tmp_path / "prompts.txt"),
            "--count",
            "2",
            "--output",
            str(tmp_path / "new" / "grid.png"),
        ],
        [*base, "--prompt", "caption 1", "sampling.selection=static", "--weights", "master", "--seed", "3"],
    ]
    names = [
        f"{run}/samples/sample-step4-seed0",
        f"{run}/samples/sample-step4-seed0-2",
        f"{tmp_path}/new/grid",
        f"{run}/samples/sample-step4-seed3",
    ]
    for (code, told), name, number in zip(
        run_alone(call, sample.main, commands), names, (4, 1, 4, 4), strict=True
    ):
        told = told.splitlines()[-1]
        assert (
            code == 0
            and told.startswith(f"{name}.png: {number} picture")
            and "average inference capacity" in told
        )
        with Image.open(f"{name}.png") as grid:
            assert grid.width > 0


def test_what_cannot_be_drawn_is_an_error_that_says_what_can(run: Path, tmp_path: Path) -> None:
    prompt = ["--prompt", "x"]
    wrong = {
        "is a text-conditional model; give --prompt or --prompt-file at least once": [
            "--checkpoint",
            str(run),
            "--label",
            "1",
        ],
        "give --prompt or --prompt-file at least once and nothing else": ["--checkpoint", str(run)],
        "--count is 0; expected at least 1": ["--checkpoint", str(run), *prompt, "--count", "0"],
        "config.yaml does not exist; give a run directory": ["--checkpoint", str(tmp_path), *prompt],
        "did you mean sampling.steps?": ["--checkpoint", str(run), *prompt, "sampling.step=2"],
        "No such file or directory": ["--checkpoint", str(run), "--prompt-file", str(tmp_path / "none.txt")],
    }
    for (code, told), message in zip(run_alone(call, sample.main, list(wrong.values())), wrong, strict=True):
        told = told.splitlines()[-1]
        assert code == 2 and told.startswith("error: ") and message in told, told
