"""The dependency chain of docs/cluster.md: each job waits for the one before it
and reads what that one writes."""

import os
import subprocess
from pathlib import Path

from tests.cluster.page import chain
from tests.launch.scripts import write_program


def submitted(folder: Path) -> list[list[str]]:
    """The words of each `sbatch` of the chain; the n-th job has the number 100 + n."""
    log = folder / "jobs"
    write_program(
        folder / "bin" / "sbatch",
        f'printf "%s\\t" "$@" >>{log} && echo >>{log}',
        f"echo $((100 + $(wc -l <{log})))",
    )
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", chain()], cwd=folder, env={"PATH": path}, check=True, capture_output=True)
    return [line.split("\t")[:-1] for line in log.read_text(encoding="utf-8").splitlines()]


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_each_job_waits_for_the_one_before_it(tmp_path: Path) -> None:
    first, *others = submitted(tmp_path)
    assert "--dependency" not in first
    assert [after(words, "--dependency") for words in others] == ["afterok:101", "afterok:102", "afterok:103"]


def test_each_job_reads_what_the_one_before_it_writes(tmp_path: Path) -> None:
    shards, cache, train, scores = submitted(tmp_path)
    assert after(cache, "--input") == after(shards, "--output") + "/*.tar"
    assert after(cache, "--array") == after(shards, "--array")
    features = after(cache, "--output").replace("{task}", "*")
    assert f"data.train=[{features}/*.tar]" in train
    assert after(train, "--config") == after(cache, "--config")
    assert after(scores, "--part") == "{part}"
