"""`python -m diffmoe_scale.doctor`: compare the nodes of a cluster before a job finds out."""

import argparse
import dataclasses
import json
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.cli.command import FAILED, OK, command_parser, run_command, user_path
from diffmoe_scale.doctor.bandwidth import (
    Speeds,
    describe,
    judge_speeds,
    measure,
    number_of_node,
)
from diffmoe_scale.doctor.facts import Facts, find_facts, required_packages
from diffmoe_scale.doctor.judge import Finding, judge
from diffmoe_scale.doctor.reach import ANSWER, OF_STEP, Nodes, is_own, listening, read_hosts, slurm_nodes
from diffmoe_scale.words import counted

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = """\
bash launch/doctor.sh                                       this machine
bash launch/doctor.sh --hostfile launch/hostfile            the hosts of DeepSpeed's host file, over ssh
salloc -N 4 bash launch/doctor.sh --shared /shared/runs     the nodes of a SLURM job
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 nothing found, 1 a node is not as it should be, 2 a wrong argument."""
    parser = command_parser(
        "doctor",
        "Compare the nodes of a cluster: Python and package versions, GPUs, driver, compiler, clocks, the "
        "port of the head, whether they share a folder, and how fast that is; then how fast the GPUs send to "
        "each other. Each finding names the node and what to do.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--hostfile", type=user_path, help="DeepSpeed's host file; the hosts are asked over ssh"
    )
    parser.add_argument(
        "--shared",
        type=user_path,
        default=Path.cwd(),
        help="a folder that all nodes share (default: this one)",
    )
    parser.add_argument("--port", type=int, default=29500, help="of the head, for the ranks to meet (29500)")
    parser.add_argument("--json", action="store_true", help="print what the nodes say as JSON")
    parser.add_argument(
        "--no-bandwidth", action="store_true", help="leave out all-reduce and all-to-all, which need torch"
    )
    parser.add_argument("--measure", nargs=3, metavar=("HEAD", "NODES", "NODE"), help=argparse.SUPPRESS)
    parser.add_argument("--probe", nargs=2, metavar=("HEAD", "NODES"), help=argparse.SUPPRESS)
    return run_command(parser, work, arguments)


def work(parsed: argparse.Namespace) -> int:
    if parsed.probe:
        head, nodes = parsed.probe
        mine = find_facts(parsed.shared, nodes=int(nodes), head=head, port=parsed.port, root=ROOT)
        print(ANSWER + json.dumps(dataclasses.asdict(mine)), flush=True)
        return OK
    if parsed.measure:
        head, nodes, node = parsed.measure
        number = number_of_node() if node == OF_STEP else int(node)
        measure(head, port=parsed.port, nodes=int(nodes), node=number)
        return OK
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the folder of `ask_facts` is removed
        signal.signal(number, signal.default_int_handler)
    hosts = read_hosts(parsed.hostfile) if parsed.hostfile else []
    nodes = Nodes(hosts, len(hosts) or slurm_nodes() or 1, ROOT)
    if not 1 <= parsed.port <= 65535:
        raise ValueError(f"--port is {parsed.port}; expected 1 to 65535")
    if not parsed.shared.is_dir():
        raise ValueError(f"--shared is {parsed.shared}; expected a folder that exists on all nodes")
    print(f"asking {counted(nodes.count, 'node')}; this takes up to a minute", file=sys.stderr)
    facts, silent = ask_facts(nodes, parsed)
    if parsed.json:
        print(json.dumps([dataclasses.asdict(node) for node in facts], indent=1))
    findings = judge(facts, required_packages(ROOT)) if facts else []
    if not parsed.no_bandwidth:
        reason = why_no_bandwidth(facts, nodes.count)
        if reason:
            print(f"bandwidth is not measured: {reason}", file=sys.stderr)
        else:
            findings += ask_bandwidth(nodes, parsed.port)
    found = [*silent, *map(str, findings)]
    for line in found:
        print(line)
    answered = f"{len(facts)} of {counted(nodes.count, 'node')} answered"
    print(f"{answered}; {counted(len(found), 'finding') if found else 'nothing found'}", file=sys.stderr)
    return FAILED if found or len(facts) < nodes.count else OK


def ask_facts(nodes: Nodes, parsed: argparse.Namespace) -> tuple[list[Facts], list[str]]:
    """What the nodes find out about themselves, and why some gave no answer."""
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=parsed.shared))
    command = [*doctor(parsed.port), "--shared", str(folder)]
    try:
        with listening(parsed.port):
            answers, silent = nodes.ask([*command, "--probe", head_of(nodes), str(nodes.count)])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [Facts(**answer) for answer in answers], silent


def why_no_bandwidth(facts: Sequence[Facts], nodes: int) -> str:
    """A reason to leave it out; "" if there is none."""
    if len(facts) < nodes:
        return "not all nodes answered"
    if lacking := [node.host for node in facts if "torch" not in node.packages]:
        return f"{', '.join(lacking)} has no torch"
    if len({len(node.gpus) for node in facts}) > 1:
        return "the nodes have different numbers of GPUs"
    if nodes == 1 and len(facts[0].gpus) < 2:
        return "there is one process alone"
    return ""


def ask_bandwidth(nodes: Nodes, port: int) -> list[Finding]:
    """Measure and print it; what is too slow."""
    command = [*doctor(port), "--measure", head_of(nodes), str(nodes.count)]
    answers, silent = nodes.ask(command, is_numbered=True)
    if not answers:
        reason = silent[0].partition("gave no answer ")[2]
        cure = "open all ports between the nodes, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        return [Finding("all nodes", f"their processes did not reach each other {reason}", cure)]
    speeds = Speeds(**answers[0])
    print(describe(speeds), file=sys.stderr)
    return list(judge_speeds(speeds))


def doctor(port: int) -> list[str]:
    return [sys.executable, "-m", "diffmoe_scale.doctor", "--port", str(port)]


def head_of(nodes: Nodes) -> str:
    """What the other nodes call this one: its name in the host file, if it is there."""
    if nodes.count == 1:
        return "127.0.0.1"
    return next(filter(is_own, nodes.hosts), socket.gethostname())


if __name__ == "__main__":
    sys.exit(main())
