"""Which nodes differ from the others or lack something, and what to do."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from diffmoe_scale.doctor.facts import Facts

MAX_CLOCK_OFFSET_S = 2.0
SLOW_SHARE = 0.25
"""Of the median speed of the nodes."""
MIN_MB_S = 20.0
MIN_FREE_GB, MIN_SHARED_MEMORY_GB = 5.0, 1.0
MIN_OPEN_FILES = 4096


@dataclass(frozen=True)
class Finding:
    """What is wrong with a node, and what to do."""

    host: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.host}: {self.what}; {self.cure}"


def judge(nodes: Sequence[Facts], required: Sequence[str]) -> list[Finding]:
    """What is wrong, by node. `required` are the packages that every node needs."""
    # Of two versions that are equally frequent the first node's is right, whoever answered first.
    nodes = sorted(nodes, key=lambda node: node.host)
    findings = [finding for node in nodes for finding in _alone(node, required)]
    findings += _different("Python", {node.host: node.python for node in nodes})
    for package in required:
        versions = {node.host: node.packages[package] for node in nodes if package in node.packages}
        findings += _different(package, versions)
    findings += _different("GPUs", {node.host: ", ".join(node.gpus) or "none" for node in nodes})
    findings += _not_shared(nodes)
    usual = median(node.write_mb_s for node in nodes)
    findings += [
        Finding(
            node.host,
            f"writes {node.write_mb_s:.0f} MB/s to the shared folder, the others {usual:.0f}",
            "look at its mount, its network and what else runs there",
        )
        for node in nodes
        if 0 < node.write_mb_s < max(SLOW_SHARE * usual, MIN_MB_S)
    ]
    return sorted(findings, key=lambda finding: finding.host)


def _alone(node: Facts, required: Sequence[str]) -> Iterator[Finding]:
    """What can be said of a node without the others."""
    missing = [name for name in required if name not in node.packages]
    if missing:
        yield Finding(node.host, f"lacks {', '.join(missing)} ({node.python})", "run 'make setup' there")
    if node.missing_tools:
        names = ", ".join(node.missing_tools)
        yield Finding(node.host, f"has no {names}", "install g++ and ninja: DeepSpeed compiles its optimizer")
    for problem in node.problems:
        yield Finding(node.host, problem, _cure(problem))
    if node.clock_offset_s is not None and abs(node.clock_offset_s) > MAX_CLOCK_OFFSET_S:
        yield Finding(
            node.host, f"its clock is {node.clock_offset_s:+.1f} s from the head's", "start its NTP service"
        )
    for what, value, least, unit in (
        ("free space in the shared folder", node.free_gb, MIN_FREE_GB, " GB"),
        ("shared memory (/dev/shm)", node.shared_memory_gb, MIN_SHARED_MEMORY_GB, " GB"),
        ("open files (ulimit -n)", node.open_files, MIN_OPEN_FILES, ""),
    ):
        # A folder that is not there has no free space either.
        if value < least and (value != node.free_gb or node.write_mb_s > 0):
            yield Finding(node.host, f"has {value:.3g}{unit} of {what}", f"give it at least {least:g}{unit}")


def _cure(problem: str) -> str:
    if "cannot be written to" in problem:
        return "mount the same file system on all nodes, under the same path, where this user may write"
    if "does not answer" in problem and problem.startswith("port"):
        return "open it between the nodes (firewall), or choose another --port and MASTER_PORT"
    return "mend the driver, or leave the node out"


def _different(what: str, by_host: Mapping[str, str]) -> Iterator[Finding]:
    """Nodes that have another one than most; of two equally frequent the first node's is right."""
    if not by_host:
        return
    usual, _ = Counter(by_host.values()).most_common(1)[0]
    for host, value in by_host.items():
        if value != usual:
            yield Finding(host, f"{what}: {value}, the others {usual}", "make them equal")


def _not_shared(nodes: Sequence[Facts]) -> Iterator[Finding]:
    hosts = {node.host for node in nodes if node.write_mb_s > 0}
    for node in nodes:
        unseen = sorted(hosts - set(node.seen))
        if unseen and node.write_mb_s > 0:
            yield Finding(
                node.host,
                f"does not see what {', '.join(unseen)} wrote into the shared folder",
                "mount the same file system on all nodes, under the same path",
            )
