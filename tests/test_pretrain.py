"""What `pretrain` answers before it loads torch, and that nothing is left behind then."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from diffmoe_scale import pretrain
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.pretrain import main
from diffmoe_scale.train import overview
from tests.train.runs import tiny_config


def start(tmp_path: Path, *words: str) -> tuple[str, ...]:
    """Arguments of a run on one shard, with further words."""
    (tmp_path / "config.yaml").touch()
    (tmp_path / "a.tar").touch()
    return (
        *("--config", str(tmp_path / "config.yaml"), f"data.train=[{tmp_path}/a.tar]"),
        *(f"run.directory={tmp_path}/run", *words),
    )


WRONG = {
    "no shard": (["data.train=[]"], "data.train: no shards are given"),
    "no match": (["data.train=[nowhere/*.tar]"], "data.train: shard pattern 'nowhere/*.tar' matches no file"),
    "second data set": (
        ["data.train=[{shards: [b.tar], weight: 1}]"],
        "data.train: 1 of 1 shard not there, or no file: b.tar",
    ),
    "validation": (["data.validation=[b.tar]"], "data.validation: 1 of 1 shard not there"),
    "URL without a folder": (["data.train=['http://host/a.tar']"], "set data.cache_folder"),
    "file as folder": (["run.directory=a file"], "run.directory is 'a file', but a file is a file; choose"),
    "file above": (["run.directory=a file/run"], "run.directory is 'a file/run', but a file is a file"),
    "no disk": (["run.directory=/proc/run"], "run.directory is '/proc/run', but /proc cannot be written to"),
    "dead link": (["run.directory=dead/run"], "but dead is a link that leads nowhere"),
    "long name": ([f"run.directory={'x' * 300}"], "File name too long"),
}


@pytest.mark.parametrize("option", ["--check", "--dry-run", ""])
@pytest.mark.parametrize("words, sentence", WRONG.values(), ids=WRONG)
def test_what_keeps_a_run_from_its_start_is_answered_before_anything_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # and restored: a process that trains sets them
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    Path("a file").touch()
    Path("dead").symlink_to("nowhere")
    arguments = start(tmp_path, *words, *[option][: len(option)])
    before = sorted(tmp_path.iterdir())
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert sentence in told.err and told.err.startswith("error: ") and told.err.count("\n") == 1
    assert told.out == "" and sorted(tmp_path.iterdir()) == before


def test_check_names_the_run_directory_makes_nothing_and_loads_no_torch(tmp_path: Path) -> None:
    arguments = start(tmp_path, "--check")
    code = (
        "import sys; from diffmoe_scale.pretrain import main\n"
        f"code = main({arguments!r}); sys.exit(code or 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{tmp_path}/run\n", "")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def alone(restored_logging: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank that the launcher started, which trains nothing and succeeds."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "1" if name == "WORLD_SIZE" else "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(pretrain, "train_to_end", lambda *_: None)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("failure", "code", "is_left"), [(ValueError("no captions"), 2, False), (RunError("no disk"), 1, True)]
)
def test_a_failed_start_is_one_line_and_a_wrong_one_leaves_no_directory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: Exception,
    code: int,
    is_left: bool,
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(pretrain, "train_to_end", fail)
    assert main(start(tmp_path)) == code
    assert capsys.readouterr().err.startswith(f"error: stopped (rank 0 on {socket.gethostname()}): {failure}")
    assert (tmp_path / "run").exists() == is_left


@pytest.mark.usefixtures("alone")
def test_a_start_with_a_name_leaves_it_after_training_to_the_end_and_the_next_may_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = start(tmp_path)
    assert main(arguments) == 0 and not (tmp_path / "run" / "ended").exists()
    assert f"next: python -m diffmoe_scale.sample --checkpoint {tmp_path}/run" in capsys.readouterr().err
    assert main([*arguments, "--start-id", "job 7"]) == 0
    assert (tmp_path / "run" / "ended").read_text() == "job 7"


@pytest.mark.usefixtures("alone")
def test_a_failed_start_leaves_no_name_and_lets_go_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "saved.json").write_text('{"step": 6}')
    for _ in range(2):
        assert main([*start(tmp_path), "--start-id", "job 7"]) == 2
        assert "trained to step 6 at least, but" in capsys.readouterr().err
    (tmp_path / "run" / "saved.json").unlink()

    def fail(*_: object) -> None:
        raise RunError("no disk")

    monkeypatch.setattr(pretrain, "train_to_end", fail)
    assert main([*start(tmp_path), "--start-id", "job 7"]) == 1
    assert not (tmp_path / "run" / "ended").exists()


@pytest.mark.usefixtures("alone")
def test_a_directory_that_cannot_be_locked_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(pretrain, "hold_lock", fail)
    assert main(start(tmp_path)) == 2
    assert "which cannot be written to (read-only file system); choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings", [[], ["run.global_batch=6", "run.micro_batch=2"]], ids=["good", "bad batch"]
)
def test_ranks_are_checked_before_they_meet_and_part_after_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    from diffmoe_scale.parallel import context
    from diffmoe_scale.train import run

    told: list[str] = []
    for place, name in ((pretrain, "end_on_signals"), (context, "initialize"), (context, "finalize")):
        monkeypatch.setattr(place, name, lambda name=name, **_: told.append(name))
    monkeypatch.setattr(run, "train", lambda *_: told.append("train"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    config = tiny_config(settings)
    if settings:
        with pytest.raises(ValueError, match=r"run\.global_batch is 6"):
            pretrain.train_to_end(config, RunDirectory(tmp_path))
        assert told == ["end_on_signals"]
    else:
        pretrain.train_to_end(config, RunDirectory(tmp_path))
        assert told == ["end_on_signals", "initialize", "train", "finalize"]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("world", "expert_parallel", "ranks"), [(1, 2, 2), (4, 2, 4)])
def test_a_dry_run_is_of_the_ranks_that_there_are_or_that_share_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, expert_parallel: int, ranks: int
) -> None:
    told: list[int] = []

    def describe(config: Config, directory: RunDirectory, *, ranks: int) -> list[str]:
        told.append(ranks)
        return []

    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(overview, "describe_planned_run", describe)
    assert main(start(tmp_path, f"parallel.expert_parallel={expert_parallel}", "--dry-run")) == 0
    assert told == [ranks]


LEAVING = """
import logging, logging.handlers, multiprocessing, os, signal, sys, time
from diffmoe_scale.pretrain import leave


def stay() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


if __name__ == "__main__":
    worker = multiprocessing.get_context("fork").Process(target=stay)
    worker.start()
    to_file = logging.FileHandler(sys.argv[1])
    logging.getLogger().addHandler(logging.handlers.MemoryHandler(9, target=to_file, flushLevel=99))
    logging.getLogger().warning("last words")
    sys.stdout.write(f"worker {worker.pid}")
    leave(3)
"""


def test_who_leaves_after_a_failure_ends_workers_and_loses_no_words(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    words = [sys.executable, str(tmp_path / "leaving.py"), str(tmp_path / "log")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=50, env=environment)
    assert result.returncode == 3 and result.stderr == ""
    pid = int(result.stdout.removeprefix("worker "))
    assert not Path(f"/proc/{pid}").exists()
    assert (tmp_path / "log").read_text() == "last words\n"
