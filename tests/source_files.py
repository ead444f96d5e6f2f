"""The Python files of a tree, their names, and what they import."""

import ast
from collections.abc import Iterator
from pathlib import Path


def python_files(root: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def name_of(root: Path, path: Path) -> str:
    """`moe/layer` for a file of the package, `tools/report` for others."""
    return path.relative_to(root).with_suffix("").as_posix().removeprefix("diffmoe_scale/")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted modules that a file imports, and whether relatively. `from a import b` gives a and a.b."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, node.level > 0
            yield from ((f"{module}.{alias.name}", node.level > 0) for alias in node.names)
