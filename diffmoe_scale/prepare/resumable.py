"""Commands that go on where they were stopped. Imports nothing slow, so that `--help` answers at once."""

import argparse
import sys
from collections.abc import Callable

from diffmoe_scale.cli.command import INTERRUPTED, OK


def resumable(work: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    """The work of a command that makes a set. Ctrl-C loses no finished shard, which is said."""

    def run(parsed: argparse.Namespace) -> int:
        try:
            work(parsed)
            return OK
        except KeyboardInterrupt:
            print("interrupted; the same command goes on", file=sys.stderr)
            return INTERRUPTED

    return run
