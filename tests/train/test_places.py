from pathlib import Path

import pytest

from diffmoe_scale.train.places import check_places
from tests.train.runs import text_settings, tiny_config


def check(folder: Path, *settings: str) -> None:
    check_places(tiny_config([*text_settings(folder), *settings]))


def test_a_run_with_shards_and_a_folder_may_begin_and_nothing_is_made(tmp_path: Path) -> None:
    check(tmp_path, "telemetry.prometheus_port=9400", "telemetry.metrics_every=5", "metrics.names=[fid]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.train=[nowhere/*.tar]"], r"data\.train"),
        (["run.initialize_from=nowhere"], r"run\.initialize_from is 'nowhere', which does not exist"),
        (["run.directory=/dev/null/run"], r"run\.directory is '/dev/null/run', but .*choose another folder"),
        (
            ["telemetry.metrics_every=5", "metrics.names=[fid, fidd]"],
            r"metrics\.names is \['fid', 'fidd'\]: 'fidd' is no metric; expected one of fid,",
        ),
        (
            ["telemetry.metrics_every=5", "metrics.names=[fid, 'fd:inception']"],
            r"metrics\.names .*asked for twice",
        ),
        (
            ["telemetry.prometheus_port=9400", "telemetry.prometheus_address=no.such.host.invalid"],
            r"telemetry\.prometheus_address is 'no\.such\.host\.invalid', which is no address",
        ),
        (
            ["telemetry.prometheus_port=9400", f"telemetry.prometheus_address={'a' * 70}.b"],
            r"telemetry\.prometheus_address is 'a+\.b', which is no address",
        ),
    ],
)
def test_what_would_keep_a_run_from_its_start_is_named_before(
    tmp_path: Path, settings: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        check(tmp_path, *settings)


def test_a_folder_of_another_format_is_refused_as_a_beginning(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="convert_checkpoint"):
        check(tmp_path, f"run.initialize_from={tmp_path}")


def test_a_file_in_the_place_of_the_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=r"run\.directory is .*is a file"):
        check(tmp_path)


def test_what_is_not_asked_for_is_not_looked_at(tmp_path: Path) -> None:
    check(tmp_path, "telemetry.prometheus_address=no.such.host.invalid")
