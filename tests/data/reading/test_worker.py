"""Reading processes when their rank gets a signal or is killed."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.worker import follow_rank
from tests.data.samples import read_batches, write_shards
from tests.ranks import run_alone


def read(folder: Path, num_batches: int) -> list[int]:
    """Writes down its own reading processes, sends them and the server that forked them a SIGTERM, and reads
    on: the sample numbers."""
    config = DataConfig(train=(str(folder / "*.tar"),), workers=2)
    reader = build_reader(config, config.train, model=ModelConfig(image_size=4, patch_size=2), seed=0)
    batches = read_batches(reader, global_batch=2, micro_batch=2)
    next(batches)
    workers = [child.pid for child in multiprocessing.active_children() if child.pid]
    (folder / "workers.json").write_text(json.dumps(workers))
    for process in (*map(parent, workers), *workers):
        os.kill(process, signal.SIGTERM)
    return [number for _ in range(num_batches) for number in next(batches).indices_B.tolist()]


def be_slow(folder: Path) -> None:
    """A reading process in the middle of a long read."""
    follow_rank(0)
    (folder / "worker.tmp").write_text(str(os.getpid()))
    (folder / "worker.tmp").rename(folder / "worker")
    time.sleep(300)


def start_reading_and_be_killed(folder: Path) -> None:
    multiprocessing.get_context("forkserver").Process(target=be_slow, args=(folder,)).start()
    while not (folder / "worker").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def state(process: int) -> list[str]:
    """State and parent, from /proc."""
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def parent(process: int) -> int:
    return int(state(process)[1])


def is_running(process: int) -> bool:
    try:
        return state(process)[0] != "Z"
    except FileNotFoundError:
        return False


def test_signal_to_all_processes_of_a_rank_leaves_it_its_data(tmp_path: Path) -> None:
    write_shards(tmp_path, [60])
    # More batches than the workers hold ready.
    assert run_alone(read, tmp_path, 12) == list(range(2, 26))


def test_killed_rank_leaves_no_reading_process_behind(tmp_path: Path) -> None:
    rank = multiprocessing.get_context("forkserver").Process(
        target=start_reading_and_be_killed, args=(tmp_path,)
    )
    rank.start()
    rank.join()
    assert rank.exitcode == -signal.SIGKILL
    worker, deadline = int((tmp_path / "worker").read_text()), time.monotonic() + 30
    while is_running(worker):
        assert time.monotonic() < deadline, "a reading process outlives its rank"
        time.sleep(0.05)
