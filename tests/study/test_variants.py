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
        ("base.yaml", "none.yaml", "none.yaml does not exist"),
    ],
)
def test_wrong_inputs_are_sentences(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = write_study(tmp_path, TEXT.replace(old, new))
    with pytest.raises(ValueError) as caught:
        make_variants(load_study(path))
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
