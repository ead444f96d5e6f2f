"""The files for Kubernetes and SkyPilot: what they would run is what `pretrain` and torchrun take."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from diffmoe_scale.pretrain import build_parser
from tests.launch.scripts import ROOT, write_program

SKYPILOT = {
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
}
# The fields of TrainJob in Kubeflow Trainer 2.3.0, trainer.kubeflow.org_trainjobs.yaml.
TRAINER = {"image", "command", "args", "env", "numNodes", "resourcesPerNode", "numProcPerNode"}
POD = {
    *("serviceAccountName", "volumes", "initContainers", "containers", "imagePullSecrets", "securityContext"),
    *("nodeSelector", "affinity", "tolerations", "schedulingGates", "terminationGracePeriodSeconds"),
}


def test_skypilot_meets_at_the_first_node(tmp_path: Path) -> None:
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text(encoding="utf-8"))
    write_program(tmp_path / ".venv" / "bin" / "torchrun", 'printf "%s|" "$@"')
    answer = subprocess.run(
        ["bash", "-c", task["run"]], cwd=tmp_path, env=os.environ | SKYPILOT, capture_output=True, text=True
    )
    words = answer.stdout.split("|")[:-1]
    assert words[:10] == [
        *("--nnodes", "2", "--node-rank", "1", "--nproc-per-node", "8"),
        *("--master-addr", "10.0.0.1", "--master-port", "29500"),
    ]
    assert words[10:12] == ["-m", "diffmoe_scale.pretrain"]
    parsed = build_parser().parse_args(words[12:])
    assert str(parsed.config) == "/shared/config.yaml" and parsed.settings == [
        "run.directory=/shared/runs/one"
    ]
    # A mounted bucket (`file_mounts`) does not append to files, as a run does.
    assert list(task["volumes"]) == ["/shared"] and "file_mounts" not in task


def test_kubernetes_runs_torchrun_with_arguments_that_pretrain_takes() -> None:
    job = yaml.safe_load((ROOT / "launch" / "kubernetes" / "trainjob.yaml").read_text(encoding="utf-8"))
    trainer = job["spec"]["trainer"]
    assert job["kind"] == "TrainJob" and trainer["command"] == ["torchrun", "-m", "diffmoe_scale.pretrain"]
    assert build_parser().parse_args(trainer["args"]).settings == ["run.directory=/shared/runs/one"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]


def test_kubernetes_sets_only_what_kubeflow_trainer_lets_a_job_set() -> None:
    spec = yaml.safe_load((ROOT / "launch" / "kubernetes" / "trainjob.yaml").read_text(encoding="utf-8"))[
        "spec"
    ]
    assert set(spec) == {"runtimeRef", "trainer", "runtimePatches"}
    assert set(spec["trainer"]) <= TRAINER
    (patch,) = spec["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert set(pod) <= POD
    (container,) = pod["containers"]
    assert set(container) <= {"name", "env", "volumeMounts", "securityContext"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


@pytest.mark.parametrize(
    "path", [ROOT / "launch" / "doctor.sh", *(ROOT / "launch" / "slurm").iterdir()], ids=str
)
def test_every_script_is_valid_bash(path: Path) -> None:
    answer = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
