"""The plan of a layout beside real steps of it, on ranks of this machine."""

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.parallel.context import initialize
from diffmoe_scale.plan.measure import Measured, measure_on_rank
from diffmoe_scale.plan.memory import Memory, plan_memory
from diffmoe_scale.plan.text import table

MIB = 2**20
TIMEOUT_S = 300


def compare(configs: Sequence[Config], *, ranks: int) -> list[tuple[Memory, Measured]]:
    """For each config the plan and the rank that needed most in real steps. All have one expert_parallel.

    Raises: RunError if a rank failed; its own output says why.
    """
    found = _measure_here(configs, ranks=ranks)
    pairs = []
    for number, config in enumerate(configs):
        measured = max((of_rank[number] for of_rank in found), key=lambda of_rank: of_rank.peak)
        pairs.append((plan_memory(config, ranks=ranks, is_gpu=False), measured))
    return pairs


def measure_lines(config: Config, *, ranks: int) -> list[str]:
    """The comparison of one layout, for a reader."""
    ((planned, measured),) = compare([config], ranks=ranks)
    rows = [
        ("tensors of the rank that needs most (MiB)", "planned", "measured"),
        ("between steps", f"{_states(planned) / MIB:.2f}", f"{measured.between / MIB:.2f}"),
        ("at their most", f"{planned.total / MIB:.2f}", f"{measured.peak / MIB:.2f}"),
    ]
    error = 100 * (planned.total / measured.peak - 1)
    return [*table(rows), f"the plan is {error:+.2f} % of the measured bytes away"]


def _states(memory: Memory) -> int:
    return memory.weights + memory.masters + memory.moments + memory.average


def _measure_here(configs: Sequence[Config], *, ranks: int) -> list[list[Measured]]:
    """Of every rank, what it measured for each config."""
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    texts = [dump_config(config) for config in configs]
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            spawn.Process(target=_work, args=(rank, ranks, folder, texts, answers), daemon=True)
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        found: dict[int, list[Measured]] = {}
        while len(found) < ranks:
            if any(process.exitcode not in (None, 0) for process in processes):
                break
            if not answers.empty():
                rank, measured = answers.get()
                found[rank] = measured
            processes[0].join(0.2)
        for process in processes:
            if len(found) == ranks:
                process.join(TIMEOUT_S)
            process.kill()
    if len(found) < ranks:
        raise RunError(f"a rank of {ranks} failed while it was measured; its output above says why")
    return [found[rank] for rank in range(ranks)]


def _work(
    rank: int, ranks: int, folder: str, texts: list[str], answers: "multiprocessing.Queue[object]"
) -> None:
    """A rank: its place, as a launcher would set it, and steps of every config."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # not used: ranks meet in a file
    torch.set_num_threads(1)
    configs = []
    for number, text in enumerate(texts):
        path = Path(folder) / f"config_{rank}_{number}.yaml"
        path.write_text(text, encoding="utf-8")
        configs.append(load_config(path))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    context = initialize(expert_parallel=configs[0].parallel.expert_parallel, timeout_s=TIMEOUT_S)
    answers.put((rank, [measure_on_rank(context, config) for config in configs]))
    dist.barrier()
