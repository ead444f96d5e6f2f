"""Rules of the source tree about sizes (structure.py has the others, and says what a rule is)."""

import ast
from pathlib import Path

from tests.source_files import name_of, python_files, tree_of

MAX_LINES, MAX_BENCHMARK_LINES, MAX_FUNCTION_LINES, MAX_COLUMNS = 250, 300, 60, 110
TEXT_SUFFIXES = {".sh", ".sbatch", ".example", ".yaml"}


def long_files(root: Path) -> dict[str, str]:
    found = {}
    for path in python_files(root, "diffmoe_scale", "tools", "tests", "launch"):
        name = name_of(root, path)
        limit = MAX_BENCHMARK_LINES if "bench" in name else MAX_LINES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > limit:
            found[name] = f"{lines} lines; at most {limit}"
    return found


def wide_lines(root: Path) -> dict[str, str]:
    """Also of scripts, recipes and lines that ruff lets pass for a pragma at their end."""
    others = [root / name for name in ("Makefile", "pyproject.toml", "setup.py")]
    for folder in ("launch", "configs"):
        others += [path for path in (root / folder).rglob("*") if path.suffix in TEXT_SUFFIXES]
    found = {}
    for path in [*python_files(root, "diffmoe_scale", "tools", "tests"), *others]:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_COLUMNS:
                where = f"{path.relative_to(root).as_posix()}:{number}"
                found[where] = f"{len(line)} columns; at most {MAX_COLUMNS}"
    return found


def long_functions(root: Path) -> dict[str, str]:
    found = {}
    for path in python_files(root, "diffmoe_scale", "tools", "tests", "launch"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found[f"{name_of(root, path)}:{node.name}"] = (
                        f"{lines} lines; at most {MAX_FUNCTION_LINES}"
                    )
    return found
