"""Training jobs on a real SLURM of two nodes, each of which something ends before its time: it has to go back
into the queue by itself and to end to the bit as a job that nothing happened to.

    PYTHONPATH=. python -m tests.cluster.requeue_run
    PYTHONPATH=. python -m tests.cluster.requeue_run --only "a node"

The nodes are daemons on this machine; both templates of launch/slurm run on them, a rank a node. Prints a
table: what happened, the template, the seconds until the run trained again. Needs root, slurm-wlm and munge;
not part of the tests: a job takes a minute or two.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from diffmoe_scale.config.load import dump_config
from tests.cluster import slurm_jobs
from tests.cluster.slurm import Slurm, missing, slurm
from tests.cluster.slurm_jobs import TORCHRUN, Job, submit
from tests.kill_run import outcome
from tests.launch.scripts import SBATCH
from tests.train.runs import text_settings, tiny_config

SETTINGS = (
    "run.steps=60",
    "run.global_batch=32",
    "checkpoint.every=10",
    "parallel.expert_parallel=2",
    "parallel.timeout_s=120",
)
AT_STEP = 12


@dataclass(frozen=True)
class Case:
    name: str
    script: Path
    happen: Callable[[Job], None]
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def is_disturbed(self) -> bool:
        return self.happen is not slurm_jobs.leave_alone


NODE_IS_GONE = {"RESTART_AFTER_S": "0"}
"""Without it a job that fails in its first ten minutes is taken for one with a wrong setting."""
CASES = (
    Case("nothing", SBATCH, slurm_jobs.leave_alone),
    Case("nothing", TORCHRUN, slurm_jobs.leave_alone),
    Case("scancel --signal=USR1", SBATCH, slurm_jobs.signal_ranks),
    Case("scancel --signal=USR1", TORCHRUN, slurm_jobs.signal_ranks),
    Case("scancel --batch --signal=USR1", TORCHRUN, slurm_jobs.signal_script),
    Case("scontrol requeue", SBATCH, slurm_jobs.requeue),
    Case("scontrol requeue", TORCHRUN, slurm_jobs.requeue),
    Case("the time limit", SBATCH, slurm_jobs.reach_time_limit),
    Case("the time limit", TORCHRUN, slurm_jobs.reach_time_limit),
    Case("touch RUN/stop, no signal", SBATCH, slurm_jobs.touch_stop),
    Case("touch RUN/stop, no signal", TORCHRUN, slurm_jobs.touch_stop),
    Case("a node with its slurmd is killed", SBATCH, slurm_jobs.lose_second_node, NODE_IS_GONE),
    Case("a node with its slurmd is killed", TORCHRUN, slurm_jobs.lose_second_node, NODE_IS_GONE),
    Case("the first node with its slurmd is killed", SBATCH, slurm_jobs.lose_first_node, NODE_IS_GONE),
    Case("the first node with its slurmd is killed", TORCHRUN, slurm_jobs.lose_first_node, NODE_IS_GONE),
)


def run_case(case: Case, cluster: Slurm, config: Path, run: Path) -> str:
    """Let the job meet what happens, and wait for its end: a line of the table."""
    job = submit(cluster, case.script, config, run, **case.variables)
    again_s = "-"
    if case.is_disturbed:
        job.wait_until("steps", lambda: job.step() >= AT_STEP)
        began = time.monotonic()
        case.happen(job)
        job.wait_until("the next start", lambda: "restart 1: " in job.printed())
        step = job.step()
        job.wait_until("a new step", lambda: job.step() > step)
        again_s = f"{time.monotonic() - began:.0f}"
    state = cluster.wait(job.number)
    restarts = job.field("Restarts")
    assert state == "COMPLETED", f"{case.name}: {state}\n{job.printed()}"
    # A node that comes back may end the next start as well.
    is_counted = int(restarts) > 0 if case.variables else restarts == str(int(case.is_disturbed))
    assert is_counted, f"{case.name}: {restarts} restarts\n{job.printed()}"
    return f"| {case.name} | {case.script.name} | {restarts} | {again_s} |"


def work(folder: Path, cases: list[Case]) -> None:
    config = folder / "config.yaml"
    config.write_text(dump_config(tiny_config([*text_settings(folder), *SETTINGS])))
    lines = []
    with slurm(folder / "slurm") as cluster:
        whole = folder / "case_0"
        for number, case in enumerate([CASES[0], *cases]):
            run = folder / f"case_{number}"
            lines.append(run_case(case, cluster, config, run))
            assert outcome(run) == outcome(whole), f"{case.name}: it differs from an undisturbed run"
            print(f"{lines[-1]} ends to the bit as the undisturbed one", flush=True)
    header = ["| what happens | template | restarts | trains again after s |", "|---|---|---|---|"]
    print("\n".join([*header, *lines]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases with these words in their names")
    parsed = parser.parse_args()
    if reason := missing("slurmctld", "slurmd", "sbatch", "munged"):
        parser.error(reason)
    folder = Path(tempfile.mkdtemp(prefix="requeue_run_"))
    work(folder, [case for case in CASES[1:] if parsed.only in f"{case.name} {case.script.name}"])
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
