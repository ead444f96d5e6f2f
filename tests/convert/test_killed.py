"""The whole command, killed at any moment: no target or a whole one, and nothing that the next one does not
remove."""

import hashlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from diffmoe_scale.convert.convert import Options, open_source
from tests.convert.runs import make_run
from tools.convert_checkpoint import main

TARGETS = {
    "a.safetensors": [],
    "shards": ["--shard-gib", "1e-4", "--dtype", "bf16"],
    "b.pt": ["--weights", "all"],
    "pipeline": ["--to", "diffusers"],
    "megatron": ["--to", "megatron"],
}
KILLS = 20


def files_of(folder: Path) -> dict[str, str]:
    """The check sum of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start(source: Path, target: Path) -> int:
    """The command in a process of its own; its id."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        code = 70  # an error of the test itself
        try:
            code = main([str(source), str(target), *TARGETS[target.name]])
        finally:
            os._exit(code)
    return child


def is_complete(target: Path, whole: Path) -> bool:
    """The same files as those of a conversion that was not killed; what a file says beside tensors may
    differ."""
    names = {path.relative_to(whole) for path in whole.rglob("*")}
    found = open_source(target, Options()).stored.tensors.keys()
    expected = open_source(whole, Options()).stored.tensors.keys()
    return {path.relative_to(target) for path in target.rglob("*")} == names and found == expected


@pytest.mark.slow
def test_a_command_killed_at_any_moment_leaves_no_target_or_a_whole_one(tmp_path: Path) -> None:
    source = tmp_path / "run"
    make_run(source, "diffusion.time_scale=1.0", steps=[10])
    before, durations = files_of(source), {}
    (tmp_path / "whole").mkdir()
    (tmp_path / "out").mkdir()
    for name in TARGETS:
        begin = time.monotonic()
        assert os.waitpid(start(source, tmp_path / "whole" / name), 0)[1] == 0, name
        durations[name] = time.monotonic() - begin
    generator, outcomes = random.Random(0), set()
    for number in range(KILLS):
        name = list(TARGETS)[number % len(TARGETS)]
        target = tmp_path / "out" / name
        child = start(source, target)
        time.sleep(1.3 * durations[name] * generator.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        outcomes.add(target.exists())
        if target.is_dir():
            assert is_complete(target, tmp_path / "whole" / name)
            shutil.rmtree(target)
        elif target.exists():
            target.unlink()
    assert outcomes == {True, False}
    for name in TARGETS:
        assert os.waitpid(start(source, tmp_path / "out" / name), 0)[1] == 0, name
    assert sorted(os.listdir(tmp_path / "out")) == sorted(TARGETS)
    assert files_of(source) == before
