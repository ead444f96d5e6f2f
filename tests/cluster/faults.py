"""What can happen to a run on two hosts: each fault by its name, and what the run has to do about it."""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from tests.cluster.fault_ranks import WAIT_S, Disk, Progress, Ranks, damage
from tests.cluster.hosts import kill_host

DAMAGES = ("a byte", "half a file", "a file less", "an empty manifest")
START_S = 20.0
"""Within a start there are the meeting of the ranks, their groups, reading of data and of a checkpoint."""
SHORT_S = 3.0
"""Of a link that is away for less than the time-out."""


@dataclass
class World:
    """A run in progress, and what faults do to it."""

    ranks: Ranks
    second: Ranks
    """Another start on the same directory."""
    progress: Progress
    disk: Disk
    arguments: list[str]
    step_s: float
    dice: random.Random
    began: float = 0.0
    """When the fault came about, by time.monotonic()."""

    def start(self) -> None:
        self.ranks.start(self.arguments, step_s=self.step_s)

    def wait_until(self, what: str, condition: Callable[[], bool], *, is_running: bool = True) -> None:
        give_up = time.monotonic() + WAIT_S
        while not condition():
            is_late = time.monotonic() > give_up
            assert not is_late, f"{what} did not come in {WAIT_S:g} s:\n{self.ranks.printed()}"
            is_ended = is_running and len(self.ranks.alive()) < len(self.ranks.processes)
            assert not is_ended, f"the ranks ended before {what}:\n{self.ranks.printed()}"
            time.sleep(0.02)

    def expect(self, *words: str) -> None:
        """That the ranks said so."""
        printed = self.ranks.printed()
        for word in words:
            assert word in printed, f"{word!r} is missing in:\n{printed}"


@dataclass(frozen=True)
class Fault:
    """`happen` brings the fault about, waits for the run to have noticed it, and takes the cause away. It
    returns what makes the run whole again: "start" (its ranks have ended), "save" (it goes on, and is whole
    at its next checkpoint) or "step" (it goes on)."""

    name: str
    answer: str
    """What the run does, for the table."""
    happen: Callable[[World], str]


def kill_a_rank(world: World) -> str:
    rank = world.dice.randrange(len(world.ranks.hosts))
    world.ranks.send(rank, signal.SIGKILL)
    world.ranks.wait()
    return "start"


def stop_a_rank(world: World) -> str:
    rank = world.dice.randrange(len(world.ranks.hosts))
    world.ranks.send(rank, signal.SIGSTOP)
    world.ranks.wait([other for other in world.ranks.alive() if other != rank])
    world.expect(f"lost: rank {rank} on ")
    world.ranks.kill()  # as a launcher or scheduler does when one has ended
    return "start"


def kill_a_node(world: World) -> str:
    rank = lose_a_node(world)
    world.expect(f"lost: rank {rank} on ")
    return "start"


def kill_a_node_at_the_start(world: World) -> str:
    """In the first seconds of a start, which are those of a resume."""
    world.ranks.kill()
    world.start()
    time.sleep(world.dice.uniform(0, START_S))
    world.began = time.monotonic()
    rank = lose_a_node(world)
    printed = world.ranks.printed()
    assert f"lost: rank {rank} on " in printed or "ranks did not meet at" in printed, printed
    return "start"


def lose_a_node(world: World) -> int:
    """Nobody is left there to say that a connection is closed. The rank."""
    rank = world.dice.randrange(len(world.ranks.hosts))
    host = world.ranks.hosts[rank]
    host.cut()
    kill_host(host)
    world.ranks.wait()
    host.mend()
    return rank


def cut_the_link(world: World) -> str:
    host = world.dice.choice(world.ranks.hosts)
    host.cut()
    world.ranks.wait()
    world.expect("lost: rank 1 on host2", "lost: rank 0 on ")
    host.mend()
    return "start"


def cut_the_link_for_a_moment(world: World) -> str:
    host = world.dice.choice(world.ranks.hosts)
    host.cut()
    time.sleep(SHORT_S)
    host.mend()
    return "step"


def fill_the_disk(world: World) -> str:
    before = failed_saves(world)
    world.disk.fill()
    world.wait_until("a failed save", lambda: failed_saves(world) > before)
    world.disk.free()
    return "save"


def fill_the_disk_for_good(world: World) -> str:
    world.disk.fill()
    assert 1 in world.ranks.wait()
    world.disk.free()
    return "start"


def make_it_read_only(world: World) -> str:
    before = failed_saves(world)
    world.disk.forbid(world.progress.run.path)
    world.wait_until("a failed save", lambda: failed_saves(world) > before)
    world.disk.allow(world.progress.run.path)
    return "save"


def make_it_read_only_for_good(world: World) -> str:
    world.disk.forbid(world.progress.run.path)
    assert 1 in world.ranks.wait()
    world.disk.allow(world.progress.run.path)
    return "start"


def damage_the_newest_checkpoint(world: World) -> str:
    """Found when the run starts again, after ranks were killed."""
    world.wait_until("two checkpoints", lambda: len(checkpoints(world)) >= 2)
    world.ranks.kill()
    damage(checkpoints(world)[-1], world.dice.choice(DAMAGES))
    return "start"


def start_a_second_run(world: World) -> str:
    world.second.start(world.arguments, step_s=0)
    world.second.wait([0])
    assert "is in use" in world.second.printed(), world.second.printed()
    assert world.second.processes[0].exitcode == 2
    for process in world.second.processes:
        process.kill()  # as its launcher does when one has ended
        process.join()
    return "step"


def failed_saves(world: World) -> int:
    """Of this start."""
    return world.ranks.printed().count("was not written")


def checkpoints(world: World) -> list[Path]:
    return complete_checkpoints(world.progress.run.checkpoints)


FAULTS = (
    Fault("a rank is killed", "the others end at once", kill_a_rank),
    Fault("a rank is stopped (SIGSTOP)", "the others end after the time-out and name it", stop_a_rank),
    Fault("a node is gone", "the others end after the time-out and name it", kill_a_node),
    Fault(
        "a node is gone while the run starts",
        "the others end after the time-out and say so",
        kill_a_node_at_the_start,
    ),
    Fault("the link is cut for good", "all end after the time-out and name the others", cut_the_link),
    Fault("the link is cut for 3 s", "waits, goes on", cut_the_link_for_a_moment),
    Fault("the disk is full for a moment", "trains on, saves again after 30 s", fill_the_disk),
    Fault("the disk stays full", "trains on for 30 s, then ends", fill_the_disk_for_good),
    Fault("the disk is read-only for a moment", "trains on, saves again after 30 s", make_it_read_only),
    Fault("the disk stays read-only", "trains on for 30 s, then ends", make_it_read_only_for_good),
    Fault(
        "the newest checkpoint is damaged (and all ranks killed)",
        "names it, takes the one before",
        damage_the_newest_checkpoint,
    ),
    Fault("a second start on the directory", "the second ends with code 2", start_a_second_run),
)


def choose_faults(count: int, dice: random.Random) -> list[Fault]:
    """In random order, each about as often as the others."""
    chosen: list[Fault] = []
    while len(chosen) < count:
        chosen += dice.sample(FAULTS, len(FAULTS))
    chosen = chosen[:count]
    dice.shuffle(chosen)
    return chosen
