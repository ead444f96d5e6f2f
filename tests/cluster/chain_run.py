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
from tests.cluster.slurm import Slurm, slurm
from tests.cluster.slurm_jobs import OPTIONS, OWN
from tests.encoders.autoencoder.models import tiny_model
from tests.launch.scripts import SBATCH
from tests.ports import free_port
from tests.prepare.folders import add_picture
from tests.train.runs import text_settings, tiny_config

ARRAY = SBATCH.with_name("array.sbatch")
ARRAY_OPTIONS = ("--gpus-per-node=0", "--cpus-per-task=1", "--array=0-1")


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
        f"data.train=[{folder}/features/*/*.tar]",
        f"run.directory={folder / 'run'}",
    ]
    (folder / "train.yaml").write_text(dump_config(tiny_config(settings)))
    evaluation = {
        "evaluation": {"checkpoints": [str(folder / "run")], "output": str(folder / "scores")},
        "suites": [{"kind": "scenes", "prompts": 2}],
    }
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(evaluation))


def submit_chain(cluster: Slurm, folder: Path) -> dict[str, str]:
    """The numbers of the jobs."""
    jobs: dict[str, str] = {}

    def submit(name: str, *words: str) -> None:
        after = [f"--dependency=afterok:{list(jobs.values())[-1]}"] if jobs else []
        output = f"--output={folder}/{name}_%a.log"
        variables = OWN | {"MASTER_PORT": str(free_port())}
        jobs[name] = cluster.run("sbatch", "--parsable", *after, output, *words, **variables)

    array = (*ARRAY_OPTIONS, str(ARRAY))
    train = str(folder / "train.yaml")
    raw, shards = f"{folder}/raw/{{task}}", f"{folder}/shards/{{task}}"
    submit("shards", *array, "tools/prepare_shards.py", "--input", raw, "--output", shards)
    features = f"{folder}/features/{{task}}"
    given: tuple[str, ...] = ("--config", train, "--input", f"{shards}/*.tar", "--output", features)
    submit("features", *array, "tools/cache_features.py", *given)
    submit("training", *OPTIONS, str(SBATCH), "--config", train)
    given = ("--config", str(folder / "evaluate.yaml"), "--part", "{part}")
    submit("scores", *array, "tools/evaluate.py", *given)
    return jobs


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="chain_run_"))
    write_inputs(folder)
    with slurm(folder / "slurm") as cluster:
        for name, job in submit_chain(cluster, folder).items():
            states = [cluster.wait(f"{job}_{task}" if name != "training" else job) for task in (0, 1)]
            print(f"{name}: {', '.join(states)}", flush=True)
            logs = "".join(path.read_text() for path in sorted(folder.glob(f"{name}_*.log")))
            assert set(states) == {"COMPLETED"}, logs
    assert list((folder / "scores").rglob("results.jsonl")), f"no scores in {folder}"
    print(f"in the folder of scores: {sorted(path.name for path in (folder / 'scores').iterdir())}")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
