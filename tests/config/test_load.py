import itertools
from pathlib import Path

import pytest

from diffmoe_scale.config.help import describe_config
from diffmoe_scale.config.load import changed_settings, dump_config, load_config
from tests.recipes import RECIPES

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads_and_begins_with_its_command(path: Path) -> None:
    load_config(path)
    first_comment = [
        *itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    ]
    assert any(f"launch/pretrain_t2i.sh --config configs/{path.name}" in line for line in first_comment)


def test_resolved_config_alone_gives_the_same_config(tmp_path: Path) -> None:
    config = load_config(None, ["run.steps=20", "data.train=[a.tar, b.tar]", "optimizer.learning_rate=1e-3"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_changed_settings_are_named_with_both_values(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(load_config(None, ["run.steps=20", "data.train=[a.tar]"])))
    changed = changed_settings(file, load_config(None, ["run.steps=40", "data.train=[b.tar]"]))
    assert changed == ["run.steps was 20, is 40", "data.train was ['a.tar'], is ['b.tar']"]
    file.write_text("run: 3")  # by hand
    assert changed_settings(file, load_config(None)) == []
    assert changed_settings(file, load_config(None, ["run.steps=7"])) == ["run.steps was 1000, is 7"]
    file.write_text("run: {")
    assert changed_settings(file, load_config(None)) == [f"{file} is no config file"]


def test_command_line_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run: {steps: 7, seed: 3}")
    config = load_config(tmp_path / "c.yaml", ["run.steps=9"])
    assert (config.run.steps, config.run.seed, config.run.global_batch) == (9, 3, 64)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("run.stpes=3", "run.stpes is no setting; did you mean run.steps?"),
        ("sampling.step=3", "sampling.step is no setting; did you mean sampling.steps?"),
        ("rum.steps=3", "rum is no setting; did you mean run?"),
        ("steps=3", "steps is no setting; did you mean run.steps or sampling.steps?"),
        (
            "parallel.precision=bf16",
            "did you mean autoencoder.precision or model.precision or moe.precision or alignment.precision?",
        ),
        ("optimizer.zero_stage=1", "optimizer.zero_stage is no setting; did you mean parallel.zero_stage?"),
        ("run.steps=abc", "run.steps is 'abc'"),
        ("run.steps=1.5", "run.steps is 1.5"),
        ("run=3", "run is 3; expected a section"),
        ("run={steps: 3}", "argument 'run={steps: 3}' names no setting; expected section.key=value"),
        ("run.steps", "is no assignment"),
        ("data.train=x.tar", "data.train is 'x.tar'; expected a list, for example [x.tar]"),
        ("data.train=[3]", "data.train.0 is 3; input should be a valid string"),
        ("data.train=[{shards: [a.tar], weight: 1, repeat: 2}]", "data.train.0.repeat is no setting"),
        (
            "data.train=[{shards: [a.tar], wieght: 1}]",
            "data.train.0.wieght is no setting; did you mean data.train.0.weight?",
        ),
        ("data.train=[{shards: [a.tar]}]", "data.train.0.weight is missing"),
        ("data.train=[a-{0..3}.tar]", "expected ',' or ']', but got '{'); within a list, text with braces"),
        ("moe.pool=everywhere", "moe.pool is 'everywhere'; input should be 'sample', 'rank'"),
        ("model.width=130", "model.width is 130; expected a multiple of model.heads (4)"),
        ("model.patch_size=5", "model.image_size is 32; expected a multiple of model.patch_size (5)"),
        (
            "parallel.zero_stage=0",
            "parallel.zero_stage is 0; expected 1 or 2 (DeepSpeed's stage 0 clips by a mean of the ranks' "
            "own norms",
        ),
        ("parallel.zero_stage=3", "stage 3 averages the gradients of different experts"),
        (
            "parallel.expert_parallel=3",
            "moe.num_experts is 8; expected a multiple of parallel.expert_parallel (3)",
        ),
        ("run.micro_batch=48", "run.global_batch is 64; expected a multiple of run.micro_batch (48)"),
        (
            "moe.precision=fp8_current",
            "moe.precision is 'fp8_current'; expected 'model' unless moe.backend is 'transformer_engine'",
        ),
    ],
)
def test_wrong_setting_is_named_by_its_path(setting: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(None, [setting])
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "setting", ["data.train=[3]", "data.train=[{shards: [a.tar]}]", "data.train=[a-{0..3}.tar]"]
)
def test_wrong_entry_of_a_list_is_named_in_one_line(setting: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(None, [setting])
    assert "\n" not in str(error.value)


def test_unknown_key_in_a_file_is_named_with_the_nearest_right_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("moe: {num_expert: 8}")
    with pytest.raises(ValueError, match=r"moe.num_expert is no setting; did you mean moe.num_experts\?"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("text", ["run: [", "- 1", "3"])
def test_file_that_is_no_config_is_an_error_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")


def test_help_describes_every_setting() -> None:
    assert "run.steps=1000" in describe_config() and "Optimizer steps." in describe_config()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("run.steps", "run.steps=1000"),
        (" run.steps ", "run.steps=1000"),
        ("moe.router", "moe.router=diffmoe   [diffmoe, "),
        ("optimizer.learning_rate=1", "optimizer.learning_rate="),
        ("data.train", "data.train=[]"),
    ],
)
def test_help_describes_one_setting_by_its_name(name: str, shown: str) -> None:
    text = describe_config(name)
    assert text.strip().startswith(shown) and text.count("\n") == 1, text
    assert text.splitlines()[1].strip()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("run.step", "did you mean run.steps?"),
        ("rum.steps", "there is no such section"),
        ("run.", "run:"),
    ],
)
def test_help_of_an_unknown_setting_names_the_nearest(name: str, sentence: str) -> None:
    try:
        text = describe_config(name)
    except ValueError as error:
        text = str(error)
    assert sentence in text
