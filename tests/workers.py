"""Tests on several processes at once (`pytest -n`): which stay together."""

from xdist.scheduler import LoadScopeScheduling

ALONE = "tests/cluster/"
"""Whose tests run one after another: they start daemons and networks of this machine."""


class ByFile(LoadScopeScheduling):
    """The tests of a file run in one process, one after another: what they share is made once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return ALONE if file.startswith(ALONE) else file
