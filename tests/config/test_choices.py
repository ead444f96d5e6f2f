from pathlib import Path

import pytest

from diffmoe_scale.config.choices import describe_choices
from diffmoe_scale.config.load import dump_config, load_config

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.mark.parametrize("path", [None, DEMO], ids=["defaults", "demo"])
@pytest.mark.parametrize("router", ["expert_choice", "token_choice"])
def test_routers_without_a_predictor_choose_their_selection(
    router: str, path: Path | None, tmp_path: Path
) -> None:
    config = load_config(path, [f"moe.router={router}"])
    assert (config.sampling.selection, config.moe.pool) == ("static", "rank")
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("router", "chosen"),
    [
        ("dsmoe", ["static", "sigmoid", 1, 2.0, 0.95, 0]),
        ("expert_race", ["threshold", "identity", 0, 4.0, 0.95, 0]),
        ("expert_threshold", ["threshold", "sigmoid", 1, 2.0, 0.99, 200]),
        ("promoe", ["static", "identity", 1, 2.0, 0.95, 0]),
    ],
)
def test_a_router_chooses_what_its_source_has(router: str, chosen: list[object], tmp_path: Path) -> None:
    config = load_config(None, [f"moe.router={router}", "run.steps=1000"])
    moe = config.moe
    assert chosen == [
        config.sampling.selection,
        moe.gate,
        moe.shared_experts,
        moe.expert_width_ratio,
        moe.threshold_decay,
        moe.threshold_warmup_steps,
    ]
    (line,) = describe_choices(config)
    assert line.startswith(f"sampling.selection={chosen[0]}") and line.endswith(f": moe.router is {router}")
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("router", ["dsmoe", "expert_threshold", "promoe"])
@pytest.mark.parametrize("word", ["moe.shared_experts=0", "moe.expert_width_ratio=4"])
def test_a_named_width_of_experts_leaves_shared_experts_alone(router: str, word: str) -> None:
    moe = load_config(None, [f"moe.router={router}", word]).moe
    assert (moe.shared_experts, moe.expert_width_ratio) == (0, 4.0)


@pytest.mark.parametrize("path", [None, DEMO], ids=["defaults", "demo"])
def test_ddpm_chooses_its_prediction_loss_and_times(path: Path | None) -> None:
    diffusion = load_config(path, ["diffusion.kind=ddpm"]).diffusion
    assert (diffusion.prediction, diffusion.loss, diffusion.time_sampling) == (
        "velocity",
        "velocity",
        "uniform",
    )


@pytest.mark.parametrize(
    "words",
    [
        ["moe.router=token_choice", "sampling.selection=threshold"],
        ["diffusion.kind=ddpm", "diffusion.prediction=sample"],
        ["diffusion.kind=ddpm", "diffusion.time_sampling=logit_normal"],
        ["moe.router=expert_choice", "moe.pool=data_parallel"],
    ],
    ids=str,
)
def test_what_is_named_is_not_replaced_but_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match=words[1].split("=")[0]):
        load_config(DEMO, words)


def test_a_file_that_names_both_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "moe: {router: token_choice}\nsampling: {selection: threshold}", encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"sampling\.selection is 'threshold'"):
        load_config(tmp_path / "c.yaml")


def test_a_short_first_try_of_a_shipped_config_loads() -> None:
    assert load_config(DEMO, ["run.steps=50"]).optimizer.warmup_steps == 200


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ([], []),
        (
            ["moe.router=expert_choice"],
            ["sampling.selection=static, moe.pool=rank: moe.router expert_choice has no capacity predictor"],
        ),
        (
            ["diffusion.kind=ddpm"],
            [
                "diffusion.prediction=velocity, diffusion.loss=velocity, diffusion.time_sampling=uniform: "
                "diffusion.kind is ddpm"
            ],
        ),
    ],
    ids=str,
)
def test_what_follows_from_other_settings_is_said(words: list[str], lines: list[str]) -> None:
    assert describe_choices(load_config(DEMO, words)) == lines
