"""The chain of docs/cluster.md on a real SLURM of two nodes: shards and features by job arrays, training, and
scores by an array; each waits for the one before it.

    PYTHONPATH=. python -m tests.cluster.chain_run

Prints the state of each job. Needs root, slurm-wlm and munge; not part of the tests: it takes some minutes.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import yaml

from diffmoe_scale.config.load import dump_config
from tests.cluster.page import chain, fill_in
from tests.cluster.slurm import Slurm, slurm
from tests.cluster.slurm_jobs import OWN
from tests.encoders.autoencoder.models import tiny_model
from tests.launch.scripts import SBATCH
from tests.ports import free_port
from tests.prepare.folders import add_picture
from tests.train.runs import text_settings, tiny_config


def write_inputs(folder: Path) -> None:
    """Captioned pictures in two folders, an autoencoder, and both configs."""
    for number in range(40):
        name = f"{number % 2}/{number}.png"
        add_picture(folder / "raw", name, caption=f"picture {number}", color=(6 * number, 0, 0))
    tiny_model().save_pretrained(folder / "vae")
    (folder / "unused").mkdir()
    settings = [
        *(word for word in text_settings(folder / "unused") if not word.startswith("data.")),
        "autoencoder.kind=diffusers",
        f"autoencoder.path={folder / 'vae'}",
        "model.channels=16",
        "model.patch_size=2",
        "run.steps=4",
        "parallel.expert_parallel=2",
        "sampling.steps=2",
        f"data.train=[{folder}/shards/*/*.tar]",
    ]
    (folder / "train.yaml").write_text(dump_config(tiny_config(settings)))
    evaluation = {
        "evaluation": {"checkpoints": [str(folder / "run")], "output": str(folder / "scores")},
        "suites": [{"kind": "scenes", "prompts": 2}],
    }
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(evaluation))


def submit_chain(cluster: Slurm, folder: Path) -> dict[str, str]:
    """The numbers of the jobs, by what each does. The commands are those of the page."""
    names = {
        "/shared/runs/one": f"{folder}/run",
        "/shared/": f"{folder}/",
        "FILE": f"{folder}/train.yaml",
        "EVALUATION": f"{folder}/evaluate.yaml",
        "0-7": "0-1",
        "--nodes 4": "--nodes 2",
        "launch/slurm/": f"{SBATCH.parent}/",
    }
    # What nodes without GPUs and with few cores need, as the page says.
    options = f"--gpus-per-node=0 --ntasks-per-node=1 --cpus-per-task=1 --output={folder}/%j.log"
    submit = f'sbatch() {{ command sbatch --parsable {options} "$@" | tee -a {folder}/jobs; }}'
    variables = OWN | {"MASTER_PORT": str(free_port())}
    cluster.run("bash", "-euc", f"{submit}\n{fill_in(chain(), names)}", **variables)
    numbers = (folder / "jobs").read_text(encoding="utf-8").split()
    return dict(zip(("shards", "features", "training", "scores"), numbers, strict=True))


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="chain_run_"))
    write_inputs(folder)
    with slurm(folder / "slurm") as cluster:
        for name, job in submit_chain(cluster, folder).items():
            states = [cluster.wait(f"{job}_{task}" if name != "training" else job) for task in (0, 1)]
            print(f"{name}: {', '.join(states)}", flush=True)
            logs = "".join(path.read_text() for path in sorted(folder.glob("*.log")))
            assert set(states) == {"COMPLETED"}, logs
    assert list((folder / "scores").rglob("results.jsonl")), f"no scores in {folder}"
    print(f"in the folder of scores: {sorted(path.name for path in (folder / 'scores').iterdir())}")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
