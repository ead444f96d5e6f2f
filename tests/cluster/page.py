"""The commands of docs/cluster.md, with the paths and names of a place of one's own."""

import re

from tests.launch.scripts import ROOT

PAGE = ROOT / "docs" / "cluster.md"
ROW = re.compile(r"^\| (`.*?) \|", flags=re.MULTILINE)
CHAIN = re.compile(r"```\n(shards=.*?)```", flags=re.DOTALL)


def chain() -> str:
    """The lines of the dependency chain, as they stand on the page."""
    (block,) = CHAIN.findall(PAGE.read_text(encoding="utf-8"))
    return str(block)


def messages() -> list[str]:
    """The messages of the failure table."""
    faults = PAGE.read_text(encoding="utf-8").split("## Faults")[1].split("###")[0]
    return [message for cell in ROW.findall(faults) for message in re.findall(r"`(.+?)`", cell)]


def fill_in(text: str, names: dict[str, str]) -> str:
    """Each name of `names` in `text` becomes its value. Raises: AssertionError if the text lacks one."""
    for name, value in names.items():
        assert name in text, f"{name} is not in:\n{text}"
        text = text.replace(name, value)
    return text
