"""Settings of an evaluation: its recipes load, and what is wrong is named."""

from pathlib import Path

import pytest
import yaml

from diffmoe_scale.config.evaluation import HarnessConfig, load_harness_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("evaluate_*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_recipe_loads_and_begins_with_its_command(path: Path) -> None:
    assert load_harness_config(path).suites
    assert f"tools/evaluate.py --config configs/{path.name}" in path.read_text(encoding="utf-8")


def load(folder: Path, text: str, *overrides: str) -> HarnessConfig:
    tree = {"evaluation": {"checkpoints": ["a"], "output": "b"}, "suites": [{"kind": "scenes"}]}
    tree |= yaml.safe_load(text) or {}
    (folder / "e.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_harness_config(folder / "e.yaml", overrides)


def test_lists_of_sampling_and_overrides_are_taken(tmp_path: Path) -> None:
    found = load(tmp_path, "sampling: {steps: [10, 20]}", "sampling.guidance=[1.0,3.0]", "evaluation.seed=4")
    assert found.sampling == {"steps": [10, 20], "guidance": [1.0, 3.0]} and found.evaluation.seed == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evaluations: {}", "evaluations is no setting; did you mean evaluation?"),
        (
            "evaluation: {checkpoint: [a]}",
            "evaluation.checkpoint is no setting; did you mean evaluation.checkpoints?",
        ),
        ("evaluation: {output: b}", "evaluation.checkpoints is (); expected a value"),
        (
            "evaluation: {checkpoints: [a, a], output: b}",
            "evaluation.checkpoints is ('a', 'a'); expected each value once",
        ),
        ("sampling: {stepss: 3}", "sampling.stepss is no setting; did you mean sampling.steps?"),
        ("sampling: {steps: []}", "sampling.steps is []; expected a value, or a list of different values"),
        (
            "sampling: {steps: [3, 3]}",
            "sampling.steps is [3, 3]; expected a value, or a list of different values",
        ),
        (
            "sampling: {steps: [" + ", ".join(map(str, range(1, 1002))) + "]}",
            "sampling is '1001 combinations'",
        ),
        ("suites: []", "expected at least one suite, as '- kind: scenes'"),
        ("suites: [{kind: genevall, file: a}]", "suites.0.kind is 'genevall'"),
        (
            "suites: [{kind: scenes}, {kind: geneval}]",
            "suites.1.file is ''; expected nothing for kinds 'scenes' and 'labels'",
        ),
        ("suites: [{kind: scenes, fil: a}]", "suites.0.fil is no setting; did you mean suites.0.file?"),
        ("suites: [{kind: geneval, file: a, questions: b}]", "suites.0.questions is 'b'; expected nothing"),
        (
            "judge: {kind: endpoint, url: 'http://a'}",
            "judge.model is ''; expected a value for judge.kind 'endpoint'",
        ),
        ("judge: {folder: a}", "judge.folder is 'a'; expected a value for judge.kind 'transformers'"),
        ("judge: {kind: none, fingerprint: a}", "judge.fingerprint is 'a'; expected nothing unless"),
        ("metrics: {names: 3}", "metrics.names is 3"),
    ],
)
def test_wrong_settings_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        load(tmp_path, text)
    assert message in str(error.value)
