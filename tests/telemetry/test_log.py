import logging
import warnings
from pathlib import Path

import pytest

from diffmoe_scale.telemetry.log import setup_logging, silence_packages
from tests.telemetry.full_disk import disk_limit

OURS, OTHERS = logging.getLogger("diffmoe_scale.train"), logging.getLogger("some.package")


pytestmark = pytest.mark.usefixtures("restored_logging")


def say_everything() -> None:
    OURS.info("our news")
    OURS.warning("our worry")
    OTHERS.info("their news")
    OTHERS.warning("their worry")


def test_the_main_rank_tells_our_news_and_all_worries_to_console_and_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(tmp_path / "run", rank=0)
    say_everything()
    file = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in file] == [
        "INFO diffmoe_scale.train: our news",
        "WARNING diffmoe_scale.train: our worry",
        "WARNING some.package: their worry",
    ]
    console = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in console] == [
        "INFO our news",
        "WARNING our worry",
        "WARNING their worry",
    ]


def test_another_rank_tells_worries_with_its_number_and_writes_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(tmp_path / "run", rank=3)
    say_everything()
    assert [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()] == [
        "WARNING rank 3 our worry",
        "WARNING rank 3 their worry",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("rank", "origin"), [(0, ""), (3, "rank 3 ")])
def test_an_error_is_a_line_as_every_command_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int, origin: str
) -> None:
    setup_logging(tmp_path, rank=rank)
    OURS.error("stopped: %s", "why")
    assert capsys.readouterr().err == f"error: {origin}stopped: why\n"
    if rank == 0:
        assert " ERROR diffmoe_scale.train: stopped: why" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("torch.utils.cpp_extension", "No CUDA runtime is found, using CUDA_HOME='/usr/local'"),
        ("DeepSpeed", "Setting accelerator to CPU. If you"),
    ],
)
def test_a_known_line_of_a_package_is_left_out_and_others_are_not(
    caplog: pytest.LogCaptureFixture, name: str, warning: str
) -> None:
    logger = logging.getLogger(name)
    silence_packages()
    logger.addHandler(caplog.handler)
    logger.warning(warning)
    logger.warning("another")
    logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"another"}


def test_a_second_call_changes_the_place_and_doubles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(tmp_path / "first", rank=0)
    setup_logging(tmp_path / "second", rank=0)
    OURS.info("our news")
    assert (tmp_path / "first" / "log.txt").read_text() == ""
    assert (
        (tmp_path / "second" / "log.txt").read_text().count("our news")
        == 1
        == capsys.readouterr().err.count("our news")
    )


def test_a_python_warning_is_one_line_of_the_main_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for rank in (0, 1):
            setup_logging(tmp_path, rank=rank)
            warnings.warn("old option", UserWarning, stacklevel=1)
    assert (tmp_path / "log.txt").read_text().count("UserWarning: old option") == 1
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_deepspeeds_warnings_reach_the_file(tmp_path: Path) -> None:
    logger = logging.getLogger("DeepSpeed")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    setup_logging(tmp_path, rank=0)
    logger.info("their news")
    logger.warning("their worry")
    assert [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "WARNING DeepSpeed: their worry"
    ]


def test_only_what_is_known_of_packages_is_silenced() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        silence_packages()
        warnings.warn(
            "Transformer Engine and Apex are not installed. Falling back to Torch optimizers.",
            UserWarning,
            stacklevel=1,
        )
        warnings.warn("something new", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in told] == ["something new"]


def test_a_full_disk_is_said_once_and_its_lines_come_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(tmp_path, rank=0)
    with disk_limit(100):
        for number in range(200):
            OURS.info("%d %s", number, "x" * 100)
    OURS.info("200 is the last")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    numbers = [int(line.split()[4]) for line in lines if " diffmoe_scale.train: " in line]
    assert numbers == list(range(201))
    told = capsys.readouterr().err
    assert told.count("log.txt cannot be written (") == 1 and "Traceback" not in told


def test_words_that_do_not_fit_end_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path, rank=0)
    OTHERS.warning("%d pictures", "no")
    OURS.warning("half a pair: %s", "\ud800")
    assert "Logging error" in capsys.readouterr().err
    assert (tmp_path / "log.txt").read_text().endswith("half a pair: \\ud800\n")


def test_a_line_after_the_end_of_logging_is_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(tmp_path, rank=0)
    for handler in logging.getLogger().handlers:  # as logging.shutdown does with all
        handler.close()
    OURS.warning("last words")
    assert "last words" in (tmp_path / "log.txt").read_text()
    assert "Logging error" not in capsys.readouterr().err
