"""The ranks of a run on hosts of their own, and a small disk for its directory that can fail."""

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from diffmoe_scale.checkpoint.manifest import complete_checkpoints, step_of
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.telemetry.metrics import read_metrics
from tests.cluster.hosts import Host, kill_host

PORT = 29500
FORBID_ATTEMPTS = 50
WAIT_S = 600.0
"""For what has to happen: a start, the end of ranks, a step. A start is seconds, but minutes on a machine
that is busy with other work."""
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    [
        "torch",
        "deepspeed",
        "megatron.core.parallel_state",
        "diffmoe_scale.pretrain",
        "diffmoe_scale.train.run",
    ]
)


def _rank_main(
    host: Host, variables: dict[str, str], output: Path, arguments: list[str], step_s: float
) -> None:
    """A rank from its start to its exit code, as `python -m diffmoe_scale.pretrain` is one."""
    os.setsid()
    host.enter()
    with output.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ |= variables
    tempfile.tempdir = None  # another one than of the process that this one was forked from
    from diffmoe_scale import pretrain
    from diffmoe_scale.train import run

    train_step = run.train_step

    def slow_step(*all_arguments: object) -> None:
        time.sleep(step_s)
        train_step(*all_arguments)  # type: ignore[arg-type]  # passed on

    setattr(run, "train_step", slow_step)  # noqa: B010 # of another signature
    pretrain.leave(pretrain.main(arguments))


class Ranks:
    """A rank on each host, which all train one run; `step_s` makes a step of a tiny model last as long as a
    large one's."""

    def __init__(self, hosts: list[Host], outputs: Path, temporary: Path, *, port: int = PORT) -> None:
        self.hosts, self._outputs, self._temporary, self._port = hosts, outputs, temporary, port
        self.processes: list[BaseProcess] = []

    def start(self, arguments: list[str], *, step_s: float) -> None:
        assert not self.alive()
        for rank, host in enumerate(self.hosts):
            self.output(rank).unlink(missing_ok=True)
            variables = {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(self.hosts)),
                "LOCAL_RANK": "0",
                "LOCAL_SIZE": "1",
                "MASTER_ADDR": self.hosts[0].address,
                "MASTER_PORT": str(self._port),
                "GLOO_SOCKET_IFNAME": "eth0",
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(self._temporary),
            }
            words = (host, variables, self.output(rank), arguments, step_s)
            process = _FORKSERVER.Process(target=_rank_main, args=words)
            process.start()
            self.processes[rank : rank + 1] = [process]

    def output(self, rank: int) -> Path:
        return self._outputs / f"port_{self._port}_rank_{rank}.txt"

    def printed(self) -> str:
        return "".join(
            self.output(rank).read_text() for rank in range(len(self.hosts)) if self.output(rank).exists()
        )

    def alive(self) -> list[int]:
        return [rank for rank, process in enumerate(self.processes) if process.is_alive()]

    def send(self, rank: int, signum: signal.Signals) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, signum)

    def wait(self, ranks: list[int] | None = None, *, limit_s: float = WAIT_S) -> list[int | None]:
        """Until those, or all, have ended; the exit codes of all."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            self.processes[rank].join(limit_s)
            assert not self.processes[rank].is_alive(), f"rank {rank} hangs:\n{self.printed()}"
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        for host in self.hosts:
            kill_host(host)
        for process in self.processes:
            process.join()


class Progress:
    """How far a run is, by its files."""

    def __init__(self, directory: Path) -> None:
        self.run = RunDirectory(directory)

    def step(self) -> int:
        return max((line["step"] for line in read_metrics(self.run.metrics)), default=0)

    def saved(self) -> int:
        return max(map(step_of, complete_checkpoints(self.run.checkpoints)), default=0)


class Disk:
    """A small file system at a folder."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        self.folder, self._filling = folder, folder / "filling"
        self._forbidden: list[Path] = []
        folder.mkdir(parents=True)
        mount("-t", "tmpfs", "-o", f"size={size_mb}M", "tmpfs", str(folder))

    def fill(self) -> None:
        block = bytes(2**16)
        with contextlib.suppress(OSError), self._filling.open("wb", buffering=0) as file:
            while True:
                file.write(block)

    def free(self) -> None:
        self._filling.unlink(missing_ok=True)

    def forbid(self, folder: Path) -> None:
        """A folder of it becomes read-only; what is open there stays so."""
        self._forbidden.append(folder)
        for attempt in range(1, FORBID_ATTEMPTS + 1):
            mount("--bind", str(folder), str(folder))
            try:
                mount("-o", "remount,bind,ro", str(folder))
                return
            except OSError:  # a rank has just opened a file there to write
                unmount(folder)
                if attempt == FORBID_ATTEMPTS:
                    raise

    def allow(self, folder: Path) -> None:
        """Read-only no longer."""
        self._forbidden.remove(folder)
        unmount(folder)

    def remove(self) -> None:
        for folder in (*self._forbidden, self.folder):
            unmount(folder)
        self.folder.rmdir()


@contextlib.contextmanager
def disk(folder: Path, *, size_mb: int) -> Iterator[Disk]:
    made = Disk(folder, size_mb)
    try:
        yield made
    finally:
        made.remove()


def damage(checkpoint: Path, kind: str) -> None:
    """Change a complete checkpoint as a disk, a crash or an operator does."""
    largest = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    if kind == "a byte":
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 255
        largest.write_bytes(data)
    elif kind == "half a file":
        os.truncate(largest, largest.stat().st_size // 2)
    elif kind == "a file less":
        largest.unlink()
    else:
        shutil.copyfile(os.devnull, checkpoint / "manifest.json")


def mount(*words: str) -> None:
    answer = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise OSError(errno.EIO, f"mount {' '.join(words)}: {answer.stderr.strip()}")


def unmount(folder: Path) -> None:
    """Lazily: a process that is ending may still have a file open there."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
