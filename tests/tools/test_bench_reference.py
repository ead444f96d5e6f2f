"""The tool against a stand-in of the reference's modules, which the test writes into a folder."""

import json
import shutil
from pathlib import Path

import pytest

from tests.bench import stand_in
from tools import bench_reference

TINY = ["--width", "64", "--tokens", "32", "--latent-size", "8", "--rounds", "1", "--threads", "1"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    models = tmp_path / "DiffMoE" / "models"
    models.mkdir(parents=True)
    shutil.copy(stand_in.__file__, models / "models_DiffMoE.py")
    (models / "modules.py").touch()
    return models.parent


def run(checkout: Path, *arguments: str) -> int:
    return bench_reference.main([str(checkout), *TINY, "--device", "cpu", "--experts", "4", *arguments])


def test_layer_and_step_of_equal_weights_are_timed(checkout: Path, tmp_path: Path) -> None:
    output = tmp_path / "reference.json"
    assert run(checkout, "--output", str(output)) == 0
    table = json.loads(output.read_text(encoding="utf-8"))["table"]
    layer = [
        ("layer", phase, name)
        for phase in ("forward+backward", "inference")
        for name in ("ours", "reference", "expert_gemms")
    ]
    step = [("step", "step", name) for name in ("ours", "reference")]
    assert [(row["part"], row["phase"], row["contender"]) for row in table] == layer + step
    assert all(row["over_ours"]["median"] == 1 for row in table if row["contender"] == "ours")


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ("gate_SE[taken_K, i, None] *", "2 *", "layer of 4 experts"),
        ("self.t_embedder(t) +", "2 * self.t_embedder(t) +", "model of 4 experts"),
    ],
)
def test_another_answer_is_an_error(
    before: str, after: str, part: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkout / "models" / "models_DiffMoE.py"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
    assert run(checkout) == 1
    assert f"{part}: the answers of this stack and of the reference differ" in capsys.readouterr().err


def test_another_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 2
    expected = "has no models/models_DiffMoE.py and no models/modules.py; expected a checkout"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "error"),
    [("import no_such_package", "No module named 'no_such_package'"), ("", "defines no SparseMoEBlock")],
)
def test_broken_checkouts_are_an_error(
    text: str, error: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "models" / "models_DiffMoE.py").write_text(text, encoding="utf-8")
    assert run(checkout) == 2
    assert error in capsys.readouterr().err


def test_sizes_that_cannot_be_measured_are_an_error(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkout, "--experts", "5") == 2
    assert "--experts is 5" in capsys.readouterr().err
