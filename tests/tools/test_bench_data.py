import json
from pathlib import Path

import pytest

from diffmoe_scale.bench.data_files import make_pictures
from tools import bench_data


def test_every_contender_is_measured_on_the_set_it_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--samples", "8", "--batch", "2", "--rounds", "2", "--output", str(tmp_path / "figures.json")]
    assert bench_data.main(command) == 0
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(report["pictures"]) == {"this reader", "webdataset", "ImageFolder"}
    assert set(report["features"]) == {"this reader", "webdataset", "its tar alone"}
    for figure in (*report["pictures"].values(), *report["features"].values()):
        assert figure["samples_per_s"] > 0 and figure["samples_per_cpu_s"] > 0
    assert (
        report["features"]["this reader"]["ratio"]["median"] == 1
        and len(capsys.readouterr().out.splitlines()) == 8
    )


def test_shards_of_pictures_are_no_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = make_pictures(tmp_path / "p", count=4, size=16)
    sizes = ["--samples", "2", "--batch", "2", "--rounds", "1"]
    assert bench_data.main(["--features", pictures, "--pictures", pictures, *sizes]) == 2
    assert "expected shards of tools/cache_features.py" in capsys.readouterr().err
