"""`python -m diffmoe_scale.doctor`: compare the nodes of a cluster before a job finds out."""

import argparse
import dataclasses
import json
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.cli.command import FAILED, OK, command_parser, run_command, user_path
from diffmoe_scale.doctor.facts import find_facts, required_packages
from diffmoe_scale.doctor.judge import judge
from diffmoe_scale.doctor.reach import ANSWER, ask, ask_here, ask_slurm, listening, read_hosts, slurm_nodes
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
        "port of the head, and whether they share a folder, and how fast. Each finding names the node and "
        "what to do.",
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
    parser.add_argument("--probe", nargs=2, metavar=("HEAD", "NODES"), help=argparse.SUPPRESS)
    return run_command(parser, work, arguments)


def work(parsed: argparse.Namespace) -> int:
    if parsed.probe:
        head, nodes = parsed.probe
        mine = find_facts(parsed.shared, nodes=int(nodes), head=head, port=parsed.port, root=ROOT)
        print(ANSWER + json.dumps(dataclasses.asdict(mine)), flush=True)
        return OK
    hosts = read_hosts(parsed.hostfile) if parsed.hostfile else []
    nodes = len(hosts) or slurm_nodes() or 1
    if not 1 <= parsed.port <= 65535:
        raise ValueError(f"--port is {parsed.port}; expected 1 to 65535")
    if not parsed.shared.is_dir():
        raise ValueError(f"--shared is {parsed.shared}; expected a folder that exists on all nodes")
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=parsed.shared))
    command = [
        sys.executable,
        "-m",
        "diffmoe_scale.doctor",
        "--shared",
        str(folder),
        "--port",
        str(parsed.port),
    ]
    command += ["--probe", socket.gethostname() if nodes > 1 else "127.0.0.1", str(nodes)]
    print(f"asking {counted(nodes, 'node')}; this takes up to a minute", file=sys.stderr)
    try:
        with listening(parsed.port):
            if hosts:
                facts, silent = ask(hosts, command, root=ROOT)
            else:
                facts, silent = ask_slurm(command) if nodes > 1 else ask_here(command)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if parsed.json:
        print(json.dumps([dataclasses.asdict(node) for node in facts], indent=1))
    found = [*silent, *map(str, judge(facts, required_packages(ROOT)) if facts else [])]
    for line in found:
        print(line)
    answered = f"{len(facts)} of {counted(nodes, 'node')} answered"
    print(f"{answered}; {counted(len(found), 'finding') if found else 'nothing found'}", file=sys.stderr)
    return FAILED if found or len(facts) < nodes else OK


if __name__ == "__main__":
    sys.exit(main())
