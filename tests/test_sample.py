"""Pictures by the command line, from a run that was trained before."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from diffmoe_scale import sample
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.picture_files import read_picture_metadata
from diffmoe_scale.train import run as training
from tests.ranks import run_alone, run_on_ranks
from tests.train.runs import text_settings, tiny_config

SETTINGS = ["run.steps=4", "optimizer.warmup_steps=1", "sampling.steps=2", "sampling.guidance_end=0.6"]


def train(context: ParallelContext, settings: list[str]) -> None:
    config = tiny_config(settings)
    training.train(config, context, RunDirectory(Path(config.run.directory)))


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


def test_pictures_and_a_grid_are_written_under_free_names(run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    base = ["--checkpoint", str(run)]
    grid = [
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--count",
        "2",
        "--output",
        str(tmp_path / "new/grid.png"),
    ]
    master = ["--prompt", "caption 1", "sampling.selection=static", "--weights", "master", "--seed", "3"]
    commands = [
        [*base, "--prompt", "caption 1"],
        [*base, "--prompt", "caption 2", "--count", "1"],
        [*base, *grid],
        [*base, *master],
        [*base, "--prompt", "caption 2", "--count", "2", "--output", str(tmp_path / "folder")],
    ]
    names = [
        (f"{run}/samples/sample-step4-seed0", f"{run}/samples/sample-step4-seed0.png", 4),
        (f"{run}/samples/sample-step4-seed0-2", f"{run}/samples/sample-step4-seed0-2.png", 1),
        (f"{tmp_path}/new/grid", f"{tmp_path}/new/grid.png", 4),
        (f"{run}/samples/sample-step4-seed3", f"{run}/samples/sample-step4-seed3.png", 4),
        (f"{tmp_path}/folder", f"{tmp_path}/folder/grid.png", 2),
    ]
    for (code, text), (folder, grid_name, number) in zip(
        run_alone(call, sample.main, commands), names, strict=True
    ):
        lines = text.splitlines()
        assert code == 0, text
        assert lines[-2].startswith(f"{folder}: {number} picture")
        assert lines[-1].startswith(f"{grid_name}: {number} picture")
        assert "average inference capacity" in lines[-1] and "3 network calls a picture" in lines[-1]
        with Image.open(grid_name) as picture:
            assert picture.width > 0
    assert sorted(path.name for path in (tmp_path / "new" / "grid").iterdir()) == [
        "00000-one.png",
        "00001-one.png",
        "00002-two.png",
        "00003-two.png",
    ]
    assert sorted(path.name for path in (tmp_path / "folder").glob("0*")) == [
        "00000-caption-2.png",
        "00001-caption-2.png",
    ]


def test_one_picture_goes_into_the_file_named_with_what_made_it(run: Path, tmp_path: Path) -> None:
    command = ["--checkpoint", str(run), "--prompt", "caption 1", "--count", "1", "--seed", "5"]
    outputs = ["x.png", "x.png", "y.jpg", "z.webp"]
    commands = [[*command, "--output", str(tmp_path / name)] for name in outputs]
    answers = run_alone(call, sample.main, commands)
    written = ["x.png", "x-2.png", "y.jpg", "z.webp"]
    for (code, text), name in zip(answers, written, strict=True):
        assert code == 0 and text.splitlines()[-1].startswith(f"{tmp_path / name}: 1 picture, average"), text
        found = read_picture_metadata(tmp_path / name)
        assert (found["prompt"], str(found["seed"]), str(found["index"])) == ("caption 1", "5", "0")
        assert (str(found["step"]), found["weights"]) == ("4", "ema")
        assert found["checkpoint"] == str(run / "checkpoints" / "step_00000004")
        assert json.loads(str(found["settings"]))["steps"] == 2
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "x-2.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written)


def test_rows_of_a_table_have_seeds_and_negative_prompts_of_their_own(run: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "caption 1", "seed": 7},
        {"prompt": "caption 2", "negative_prompt": "caption 3"},
        {"prompt": "caption 1", "seed": 7, "negative_prompt": ""},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["--checkpoint", str(run), "--prompts", str(prompts), "--count", "2"]
    command += ["--negative-prompt", "caption 4", "--output", str(tmp_path / "out")]
    ((code, text),) = run_alone(call, sample.main, [[*command, "sampling.guidance=2"]])
    assert code == 0, text
    files = sorted((tmp_path / "out").glob("0*"))
    found = [read_picture_metadata(path) for path in files]
    made = [(entry["seed"], entry["index"], entry["negative_prompt"]) for entry in found]
    assert made == [
        ("7", "0", "caption 4"),
        ("7", "1", "caption 4"),
        ("0", "2", "caption 3"),
        ("0", "3", "caption 3"),
        ("7", "0", ""),
        ("7", "1", ""),
    ]
    assert files[0].read_bytes() != files[4].read_bytes(), "the negative prompt has no effect"


def test_what_cannot_be_drawn_is_an_error_that_says_what_can(run: Path, tmp_path: Path) -> None:
    here, prompt = ["--checkpoint", str(run)], ["--prompt", "x"]
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    wrong = {
        "is a text-conditional model; give --prompt or --prompts and nothing else": [*here, "--label", "1"],
        "nothing to draw: give --prompt, --prompts or": here,
        "--count is 0; expected 1 to 1000000": [*here, *prompt, "--count", "0"],
        "the seed is -1; expected a whole number": [*here, *prompt, "--seed", "-1"],
        "config.yaml does not exist; give a run directory": ["--checkpoint", str(tmp_path), *prompt],
        "did you mean sampling.steps?": [*here, *prompt, "sampling.step=2"],
        "No such file or directory": [*here, "--prompts", str(tmp_path / "none.txt")],
        "empty.txt holds no prompt": [*here, "--prompts", str(tmp_path / "empty.txt")],
        "x.gif is no kind of picture that is written": [*here, *prompt, "--output", str(tmp_path / "x.gif")],
        "x.jpg is one file for 4 pictures": [*here, *prompt, "--output", str(tmp_path / "x.jpg")],
        "file is a file; expected a folder": [*here, *prompt, "--output", str(tmp_path / "file")],
        "file/x cannot be written: ": [*here, *prompt, "--output", str(tmp_path / "file/x")],
        "file/x.png cannot be written: ": [*here, *prompt, "--output", str(tmp_path / "file/x.png")],
        "x.png and --format webp differ": [
            *[*here, *prompt, "--count", "1", "--output", str(tmp_path / "x.png")],
            *["--format", "webp"],
        ],
        "sampling.guidance is 1": [*here, *prompt, "--negative-prompt", "y", "sampling.guidance=1.0"],
        "sampling.width is 7; expected a multiple of": [*here, *prompt, "sampling.width=7"],
    }
    for (code, text), message in zip(run_alone(call, sample.main, list(wrong.values())), wrong, strict=True):
        line = text.splitlines()[-1]
        assert code == 2 and line.startswith("error: ") and message in line, text


def run_examples(document: str, folder: Path) -> list[str]:
    """The Python blocks of a document one after another, as in a notebook; names of the files they made."""
    os.chdir(folder)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "python-api.md", "exec"), names)
    return sorted(path.name for path in folder.iterdir())


def test_the_example_of_the_python_api_runs(run: Path, tmp_path: Path) -> None:
    document = (Path(__file__).parents[1] / "docs" / "python-api.md").read_text(encoding="utf-8")
    assert "runs/demo" in document
    assert run_alone(run_examples, document.replace("runs/demo", str(run)), tmp_path) == ["0.png", "1.png"]


def test_the_package_loads_torch_only_when_its_functions_are_used() -> None:
    code = (
        "import sys, diffmoe_scale\n"
        "assert 'torch' not in sys.modules\n"
        "from diffmoe_scale import generate, load_pipeline\n"
        "assert 'torch' in sys.modules and callable(generate) and callable(load_pipeline)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr


def test_the_python_api_prints_no_warnings_of_other_packages(run: Path) -> None:
    code = (
        "from diffmoe_scale import generate, load_pipeline\n"
        f"pipeline = load_pipeline({str(run)!r}, settings=['sampling.steps=1'])\n"
        "list(generate(pipeline, 'a red circle'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = [line for line in result.stderr.splitlines() if "sampling:" not in line]  # the progress bar
    assert (result.returncode, result.stdout, told) == (0, "", [])
