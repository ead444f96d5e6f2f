"""The variables that a launcher (deepspeed, torchrun, srun) gives each rank, checked before they are used."""

import os
from collections.abc import MutableMapping

SLURM_NAMES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
"""Of one process that no launcher started."""
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
"""Ranks of this machine: torchrun's name, deepspeed's name."""
LARGEST_WORLD = 1_000_000
ADVICE = (
    "start through deepspeed, torchrun or launch/slurm/pretrain.sbatch, or unset the launcher's variables"
)


def adopt_launcher_variables(environment: MutableMapping[str, str] = os.environ) -> int:
    """The rank, after setting RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR from SLURM's names, or for one
    process.

    Raises: ValueError for a variable that is no number in its range, or that contradicts another.
    """
    # An interactive SLURM shell sets SLURM_NTASKS too; only a step started by srun has SLURM_STEP_ID and a
    # process id.
    is_step = "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment
    is_launched = "WORLD_SIZE" in environment or "RANK" in environment
    for name, slurm_name in SLURM_NAMES.items():
        if name in environment:
            continue
        if is_launched and not is_step and name != "LOCAL_RANK":
            others = ", ".join(
                f"{other} is {environment[other]!r}" for other in ALONE if other in environment
            )
            raise ValueError(f"{name} is not set though {others}; {ADVICE}")
        environment[name] = environment.get(slurm_name, ALONE[name]) if is_step else ALONE[name]
    world_size = _number(environment, "WORLD_SIZE", 1, LARGEST_WORLD)
    rank = _number(environment, "RANK", 0, world_size - 1)
    # Ranks are numbered machine by machine or in turn: either way no machine has more ranks before this one.
    local_rank = _number(environment, "LOCAL_RANK", 0, rank)
    for name in LOCAL_SIZES:
        if name in environment:
            _number(environment, name, local_rank + 1, LARGEST_WORLD)
    if not environment.setdefault("MASTER_ADDR", "127.0.0.1").strip():
        raise ValueError(f"MASTER_ADDR is {environment['MASTER_ADDR']!r}; expected a host name; {ADVICE}")
    if world_size == 1:
        environment.setdefault("MASTER_PORT", "0")
    if "MASTER_PORT" not in environment:
        raise ValueError(f"WORLD_SIZE is {world_size} but MASTER_PORT is not set; {ADVICE}")
    _number(environment, "MASTER_PORT", 0 if world_size == 1 else 1, 65535)
    return rank


def local_size(environment: MutableMapping[str, str] = os.environ) -> int:
    """Ranks of this machine, as far as the launcher says; else 1."""
    return int(next((environment[name] for name in LOCAL_SIZES if name in environment), "1"))


def _number(environment: MutableMapping[str, str], name: str, low: int, high: int) -> int:
    text = environment[name]
    is_number = text.strip().isascii() and text.strip().isdecimal() and len(text) < 12
    if not is_number or not low <= int(text) <= high:
        expected = f"a whole number from {low} to {high}" if low < high else f"{low}"
        raise ValueError(f"{name} is {text!r}; expected {expected}; {ADVICE}")
    return int(text)
