import json
from pathlib import Path

import pytest

from diffmoe_scale.bench import gpu_parts
from diffmoe_scale.config.load import load_config
from diffmoe_scale.plan.trace import trace_step
from tests.ranks import run_alone
from tools import gpu_report, gpu_smoke


@pytest.mark.slow
def test_a_dry_report_runs_every_part(tmp_path: Path) -> None:
    assert gpu_report.main(["--output", str(tmp_path), "--dry"]) == 0
    results = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [result["outcome"] for result in results] == ["ok"] * len(gpu_parts.dry_parts())
    for name in ("smoke", "layer", "step", "model_step", "sampling"):
        assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["date"]


def test_the_smoke_test_passes_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "smoke.json"
    assert run_alone(gpu_smoke.main, ["--device", "cpu", "--output", str(output)]) == 0
    checks = json.loads(output.read_text(encoding="utf-8"))["checks"]
    assert len(checks) == 4 and all(outcome.startswith("ok") for outcome in checks.values())


def test_an_unknown_part_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_report.main(["--output", str(tmp_path), "--dry", "--only", "smok"]) == 2
    assert "--only has 'smok'; expected of smoke, tests" in capsys.readouterr().err


def test_the_configs_of_a_gpu_report_can_be_built() -> None:
    seen = set()
    for part in gpu_parts.gpu_parts():
        words = list(part.command)
        if "--config" in words:
            path = Path(words[words.index("--config") + 1])
            settings = [word for word in words if word.startswith("run.")]
            if path not in seen:
                assert trace_step(load_config(path, settings), num_samples=2).forward
            seen.add(path)
    assert len(seen) == 2
