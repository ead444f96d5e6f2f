"""Variants and rows: what is trained once, what a fingerprint covers, what is refused."""

from pathlib import Path

import pytest

from diffmoe_scale.config.study import load_study
from diffmoe_scale.study.variants import Row, make_rows, make_variants
from tests.study.studies import TEXT, small_study, write_study


def rows_of(folder: Path, *settings: str) -> dict[str, Row]:
    config = small_study(folder, list(settings))
    return {f"{row.variant.name}{row.seed}": row for row in make_rows(config, make_variants(config))}


def test_rows_go_seed_by_seed_and_share_trainings_that_differ_in_sampling_alone(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    assert list(rows) == ["diffmoe0", "dense0", "static0", "diffmoe1", "dense1", "static1"]
    assert rows["static0"].run == rows["diffmoe0"].run != rows["dense0"].run
    assert rows["static0"].fingerprint != rows["diffmoe0"].fingerprint
    assert rows["diffmoe1"].config.run.seed == 1
    assert len({row.fingerprint for row in rows.values()}) == 6


def test_what_numbers_depend_on_is_in_the_fingerprint_and_the_rest_is_not(tmp_path: Path) -> None:
    before = rows_of(tmp_path)["diffmoe0"]
    for changing in ("run.steps=21", "optimizer.learning_rate=0.1", "study.prompts=4"):
        assert rows_of(tmp_path, changing)["diffmoe0"].fingerprint != before.fingerprint, changing
    for same in ("study.output=elsewhere", "study.at_once=1", "study.seeds=[0,5]"):
        assert rows_of(tmp_path, same)["diffmoe0"].fingerprint == before.fingerprint, same
    after = rows_of(tmp_path, "study.prompts=4")["diffmoe0"]
    assert after.training == before.training


def test_a_training_is_shared_by_those_whose_losses_it_validates(tmp_path: Path) -> None:
    text = (
        TEXT
        + """- {{name: interval, settings: {{sampling.selection: interval}}}}
- {{name: low, settings: {{sampling.selection: interval, sampling.gamma: 0.25}}}}
- {{name: guided, settings: {{sampling.guidance: 7}}}}
"""
    )
    config = load_study(write_study(tmp_path, text))
    rows = {row.variant.name: row for row in make_rows(config, make_variants(config)) if row.seed == 0}
    assert rows["static"].run == rows["guided"].run == rows["diffmoe"].run
    assert len({rows[name].run for name in ("diffmoe", "interval", "low", "dense")}) == 4
    assert rows["static"].config.sampling.selection == "threshold"
    assert rows["low"].config.sampling.gamma == 0.25
    # Whichever variant's settings the shared run directory holds, each is scored by its own.
    expected = {"gamma": 0.5, "guidance": 3.0, "selection": "threshold"}
    assert rows["diffmoe"].variant.sampling == expected
    assert rows["guided"].variant.sampling == expected | {"guidance": 7.0}


def test_the_encoder_of_the_scenes_is_part_of_what_a_row_depends_on(tmp_path: Path) -> None:
    text = TEXT + "- {{name: aligned, settings: {{alignment.encoder: '{{teacher}}'}}}}\n"
    path = write_study(tmp_path, text)
    with pytest.raises(ValueError, match=r"study\.teacher is ''; expected a folder, for .* of aligned"):
        make_variants(load_study(path))

    def fingerprints(*settings: str) -> list[str]:
        config = load_study(path, [f"study.teacher={tmp_path}/teacher", *settings])
        return [row.fingerprint for row in make_rows(config, make_variants(config))]

    before, after = fingerprints(), fingerprints("study.teacher_steps=5")
    assert before[:3] == after[:3] and before[3] != after[3]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "moe.num_experts: 0",
            "moe.num_expert: 0",
            "variant dense: moe.num_expert is no setting; did you mean",
        ),
        ("moe.num_experts: 0", "moe.top_k: 99", "variant dense: moe.top_k is 99; expected 1 to"),
        ("moe.num_experts: 0", "run.seed: 3", "variant dense: run.seed is 3; expected nothing"),
        (
            "moe.num_experts: 0",
            "run.steps: 3",
            "run.steps of variant dense is 3; expected 20, as diffmoe has",
        ),
        ("name: dense", "name: diffmoe", "variants is 'diffmoe'; expected each name once"),
        ("name: dense", "name: Den se", "variants.N.name is 'Den se'; expected up to 40"),
        ("[[diffmoe, dense]]", "[[diffmoe, other]]", "study.expected is 'other'; expected one of diffmoe"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "study.seeds is (0, 0); expected each seed once"),
        ("seeds: [0, 1]", "sedes: [0, 1]", "study.sedes is no setting; did you mean study.seeds"),
        ("sampling.selection: static", "sampling.steps: 20", "variants diffmoe and static have the same"),
        (
            "moe.num_experts: 0",
            "data.train: [2024-01-01]",
            "variant dense: data.train is [datetime.date(",
        ),
        ("base.yaml", "none.yaml", "none.yaml does not exist"),
    ],
)
def test_wrong_inputs_are_sentences(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = write_study(tmp_path, TEXT.replace(old, new))
    with pytest.raises(ValueError) as caught:
        make_rows(config := load_study(path), make_variants(config))
    assert sentence in str(caught.value).replace("variants.1.name", "variants.N.name")


def test_overrides_are_of_the_study_or_of_all_trainings(tmp_path: Path) -> None:
    config = small_study(tmp_path, ["study.prompts=7", "moe.num_experts=4", "run.steps=9"])
    by_name = {variant.name: variant.config for variant in make_variants(config)}
    assert config.study.prompts == 7
    assert by_name["diffmoe"].moe.num_experts == 4 and by_name["dense"].moe.num_experts == 0
    assert by_name["dense"].run.steps == 9


def test_the_studies_in_configs_are_complete() -> None:
    """Each variant can be built, as one row a seed."""
    root = Path(__file__).parents[2]
    paths = sorted((root / "configs").glob("study*.yaml"))
    assert paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        config = load_study(path, [f"study.config={root / 'configs/demo.yaml'}"])
        rows = make_rows(config, make_variants(config))
        assert f"python tools/study.py --config configs/{path.name}" in text
        assert len(rows) == len(config.variants) * len(config.study.seeds) and len(config.study.seeds) >= 3
