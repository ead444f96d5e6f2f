"""README.md and docs/: links, files, options and settings that they name exist."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from diffmoe_scale.config.schema import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"--hostfile", "--num_gpus", "--master_port", "--nproc-per-node"}
"""Options of deepspeed and torchrun."""
OURS = re.compile(r"(?:diffmoe_scale\.|tools/|launch/pretrain_t2i\.sh)\S*(.*)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def settings() -> set[str]:
    sections = {field.name: field.type for field in fields(Config)}
    return {
        f"{name}.{field.name}"
        for name, kind in sections.items()
        if isinstance(kind, type)
        for field in fields(kind)
    }


def unknown_settings(text: str) -> set[str]:
    known = settings()
    sections = {name.split(".")[0] for name in known}
    named = set(re.findall(r"\b([a-z_]+\.[a-z_]+)=", text))
    return {name for name in named if name.split(".")[0] in sections} - known


def unknown_options(text: str, sources: str) -> set[str]:
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.S)
    lines = [match[1] for block in blocks for line in block.splitlines() if (match := OURS.search(line))]
    named = {
        option for line in lines for option in re.findall(r"(?<!\S)--[a-z][a-z_-]*", line.split(" #")[0])
    }
    return {option for option in named - OTHERS if f'"{option}"' not in sources} - {"--help"}


def missing_files(text: str, folder: Path) -> set[str]:
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link}
    missing = {link for link in links if link and not (folder / link).exists()}
    named = set(
        re.findall(r"\b((?:tools|configs|launch|tests|diffmoe_scale)/[\w./-]+\.(?:py|sh|yaml|sbatch))", text)
    )
    return missing | {name for name in named if not (ROOT / name).exists()} - {"tools/NAME.py"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    files = [*(ROOT / "diffmoe_scale").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert not missing_files(text, page.parent)
    assert not unknown_settings(text) - {"moe.num_expert"}, "moe.num_expert is the shown mistake"
    assert not unknown_options(text, sources)


def test_what_does_not_exist_is_found(tmp_path):
    text = "[a](b.md) `tools/absent.py` moe.absent=1\n```\npython tools/report.py --absent\n```\n"
    assert missing_files(text, tmp_path) == {"b.md", "tools/absent.py"}
    assert unknown_settings(text) == {"moe.absent"}
    assert unknown_options(text, "") == {"--absent"}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
