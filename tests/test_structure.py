"""The source tree keeps its rules (structure.py); each rule is shown to find what breaks it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure import RULES

ROOT = Path(__file__).parents[1]
COMMANDS = ["pretrain", "sample", "evaluate", "plan/__main__", "page/__main__"]
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("rule", RULES)
def test_the_tree_keeps_the_rule(rule):
    broken = [f"{name}: {why}" for name, why in RULES[rule](ROOT).items()]
    assert not broken, "\n".join(broken)


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 60
BROKEN = {
    "upward_imports": [
        (
            {"diffmoe_scale/moe/a.py": "import diffmoe_scale.train.b", "diffmoe_scale/train/b.py": ""},
            "moe/a -> train/b",
        ),
        (
            {"diffmoe_scale/train/b.py": "from tools import report", "tools/report.py": ""},
            "train/b -> tools/report",
        ),
        ({"tools/a.py": "from tools.b import c", "tools/b.py": ""}, "tools/a -> tools/b"),
    ],
    "circles": [
        (
            {
                "diffmoe_scale/moe/a.py": "def f():\n    from diffmoe_scale.moe import b",
                "diffmoe_scale/moe/b.py": "if TYPE_CHECKING:\n    from diffmoe_scale.moe.a import f",
            },
            "moe/a",
        )
    ],
    "relative_imports": [({"diffmoe_scale/moe/a.py": "from . import b"}, "moe/a")],
    "stray_packages": [
        ({"diffmoe_scale/moe/a.py": "def f():\n    import yaml.nodes"}, "moe/a -> yaml"),
        ({"tools/a.py": "from deepspeed import x"}, "tools/a -> deepspeed"),
        ({"diffmoe_scale/moe/a.py": "import pandas"}, "moe/a -> pandas"),
    ],
    "lost_packages": [({"diffmoe_scale/train/optim.py": "import torch"}, "train/optim -> apex")],
    "long_files": [
        ({"tests/test_a.py": "x = 1\n" * 251}, "tests/test_a"),
        ({"tools/bench_a.py": "x = 1\n" * 301}, "tools/bench_a"),
    ],
    "wide_lines": [
        ({"tools/a.py": "x = 1\n" + "x" * 111}, "tools/a.py:2"),
        ({"configs/a.yaml": "#" * 111}, "configs/a.yaml:1"),
        ({"launch/slurm/a.sbatch": "#" * 111}, "launch/slurm/a.sbatch:1"),
        ({"Makefile": "#" * 111}, "Makefile:1"),
    ],
    "long_functions": [({"tools/a.py": LONG_FUNCTION}, "tools/a:f")],
    "untrue_maps": [
        (
            {"diffmoe_scale/moe/__init__.py": '"""Experts.\n\na.py  one\n"""', "diffmoe_scale/moe/b.py": ""},
            "moe",
        ),
        ({"diffmoe_scale/moe/b.py": ""}, "moe"),
    ],
}


@pytest.mark.parametrize(
    ("rule", "case"), [(rule, case) for rule in BROKEN for case in range(len(BROKEN[rule]))]
)
def test_each_rule_finds_what_breaks_it(tmp_path, rule, case):
    files, name = BROKEN[rule][case]
    plant(tmp_path, files)
    assert name in RULES[rule](tmp_path)


def test_a_tree_that_keeps_the_rules_is_accepted(tmp_path):
    lines = '"""Experts.\n\na.py  one\nb: two\n"""'
    plant(
        tmp_path,
        {
            "diffmoe_scale/moe/__init__.py": lines,
            "diffmoe_scale/moe/a.py": "from diffmoe_scale.moe.b import c\n" + "x = 1\n" * 249,
            "diffmoe_scale/moe/b.py": LONG_FUNCTION.removesuffix("    x = 1\n"),
            "Makefile": "#" * 110,
            "tools/bench_a.py": "import diffmoe_scale.moe.a\n" + "x = 1\n" * 299,
        },
    )
    assert set(BROKEN) == set(RULES)
    assert {rule: RULES[rule](tmp_path) for rule in RULES} == {rule: {} for rule in RULES}


@pytest.mark.parametrize("name", COMMANDS + TOOLS)
def test_help_does_not_load_torch(name):
    path = ROOT / ("diffmoe_scale" if name in COMMANDS else "tools") / f"{name}.py"
    code = (
        f"import runpy, sys; sys.argv = ['{name}', '--help']\n"
        f"try: runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert "--" in result.stdout
