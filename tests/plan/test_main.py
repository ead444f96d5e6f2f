"""The command: every config plans, wrong arguments get a sentence, a plan that fits nowhere says so."""

import json
from pathlib import Path

import pytest

from diffmoe_scale.plan.__main__ import main
from tests.recipes import RECIPES

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = ["--config", str(CONFIGS / "demo.yaml")]


@pytest.mark.parametrize("config", RECIPES, ids=lambda path: path.stem)
def test_every_config_plans(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where no pretrained network is
    assert main(["--config", str(config), "--gpus", "64", "--layout-only", "run.global_batch=8192"]) == 0
    text = capsys.readouterr().out
    assert "B parameters" in text and "on 64 x h100" in text and ": fits\n" in text
    assert "estimate, not measured" in text and "scaling of" in text


def test_the_search_names_settings_and_json_holds_all(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["run.global_batch=8", "run.micro_batch=1"]
    assert main([*DEMO, "--gpus", "4", *settings, "--samples", "1000", "--price-per-hour", "2"]) == 0
    text = capsys.readouterr().out
    assert "fastest: parallel.expert_parallel=" in text and "layouts that fit: " in text
    assert "epoch: 1,000 samples, 125.0 steps" in text and "at 2 an hour" in text
    assert main([*DEMO, "--gpus", "4", *settings, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["best"]["fits"] and tree["own"]["run.micro_batch"] == 1
    assert (
        len(tree["layouts"]) == 3 * 2 * 3 * 2
    )  # expert_parallel, stages, checkpointing, micro-batch 1 and 2
    assert tree["best"]["estimated_images_per_s"] == max(
        plan["estimated_images_per_s"] for plan in tree["layouts"]
    )


def test_a_model_that_fits_nowhere_says_by_how_much_and_what_to_change(
    capsys: pytest.CaptureFixture[str],
) -> None:
    large = ["model.width=4096", "model.heads=32", "model.depth=48", "model.precision=bf16"]
    assert main([*DEMO, "--gpus", "2", "--layout-only", *large]) == 1
    shown = capsys.readouterr()
    assert "does NOT fit" in shown.out
    assert "error: no layout fits: EP 1, ZeRO 1, micro-batch 16, checkpointing none needs " in shown.err
    assert "it lacks " in shown.err and "leave out --layout-only" in shown.err


def test_the_search_plans_the_nearest_of_what_the_gpus_cannot_share(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = ["run.global_batch=8", "run.micro_batch=1", "parallel.expert_parallel=2"]
    assert main([*DEMO, "--gpus", "3", *settings]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "run.global_batch 8 does not split over 3 GPUs: planned with 9\n"
        "parallel.expert_parallel 2 does not divide 3 GPUs: planned with 1\n"
    )
    assert "fastest: parallel.expert_parallel=1 " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus is 0; expected 1 to 100000"),
        (["--gpus", "3", "--layout-only"], "run.global_batch is 32, which 3 GPUs cannot share evenly"),
        (["--gpus", "2", "--layout-only", "parallel.expert_parallel=4"], "but parallel.expert_parallel is 4"),
        (["--gpus", "2", "--measure", "--table", "/proc/t.json"], "--table: /proc/t.json cannot be written"),
        (["--gpus", "2", "--gpu", "v100"], "--gpu is 'v100'; expected one of h100-pcie,"),
        (["--gpus", "2", "--samples", "-1"], "--samples is -1; expected 0"),
        (["--gpus", "2", "--price-per-hour", "-1"], "--price-per-hour is -1.0; expected 0"),
        (["--gpus", "32", "--measure"], "--gpus is 32; expected at most 16 ranks to --measure"),
        (["--gpus", "2", "--measure", "parallel.expert_parallel=4"], "parallel.expert_parallel is 4"),
        (["--gpus", "2", "--data"], "absent-*.tar' matches no file"),
    ],
)
def test_wrong_arguments_get_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    elsewhere = f"data.train=[{tmp_path / 'absent-*.tar'}]"
    assert main([*DEMO, *arguments, elsewhere]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
