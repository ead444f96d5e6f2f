"""One file of Python that needs nothing of this package, made of a module and what it imports of the package.

Only what is used is taken: from the names that a module imports to the definitions that these name, through
all modules. Names stay as they are.
"""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import diffmoe_scale

PACKAGE = "diffmoe_scale"
ROOT = Path(diffmoe_scale.__file__).parent
DIGITS = 10
"""Of the hash in a file's name."""


@dataclass(frozen=True)
class Code:
    """A file of Python, and the name of its module. diffusers copies all code into one folder, where another
    export's file of the same name would be taken for it: the name has a hash of the text."""

    module: str
    text: str


@cache
def read_code(name: str) -> Code:
    """The code of shipped/NAME.py in one file."""
    text = _Bundle().join(f"{PACKAGE}.convert.shipped.{name}")
    return Code(f"diffmoe_{name}_{digest(text)}", text)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


@dataclass
class _Module:
    """The top level of a file: definitions by name, and what it imports by name as (module, name)."""

    docstring: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    """By the first name that a statement defines."""
    first_names: dict[str, str] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


class _Bundle:
    def __init__(self) -> None:
        self.modules: dict[str, _Module] = {}
        self.taken: dict[str, str] = {}
        self.packages: set[tuple[str, str, str]] = set()
        self.parts: list[str] = []

    def join(self, name: str) -> str:
        """Docstring, imports of other packages, and definitions, each after what it uses."""
        module = self.read(name)
        for definition in module.definitions:
            self.take(name, definition)
        lines = [_import_line(*entry) for entry in sorted(self.packages)]
        return "\n\n".join([module.docstring, "\n".join(lines), *self.parts]) + "\n"

    def read(self, name: str) -> _Module:
        if name not in self.modules:
            path = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
            self.modules[name] = _read_module(path.read_text(encoding="utf-8"))
        return self.modules[name]

    def take(self, module_name: str, name: str) -> None:
        """Emit a name of a module, and before it what it needs."""
        module = self.read(module_name)
        if name in module.imported:
            origin, original = module.imported[name]
            if origin.split(".")[0] == PACKAGE:
                assert name == original, f"{module_name} imports {original} as {name}"
                self.take(origin, name)
            else:
                self.packages.add((origin, original, name))
            return
        name = module.first_names.get(name, "")
        if not name or self.taken.get(name) == module_name:
            return
        assert name not in self.taken, f"{module_name} and {self.taken[name]} both define {name}"
        self.taken[name] = module_name
        statements = module.definitions[name]
        for used in dict.fromkeys(used for statement in statements for used in _names_in(statement)):
            self.take(module_name, used)
        self.parts.append("\n".join(_source_of(statement, module.lines) for statement in statements))


def _read_module(text: str) -> _Module:
    tree = ast.parse(text)
    module = _Module(f'"""{ast.get_docstring(tree)}\n"""', lines=text.splitlines())
    last = ""
    for node in tree.body[1:]:
        if isinstance(node, ast.Import):
            module.imported |= {alias.asname or alias.name: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module.imported |= {
                alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names
            }
        elif isinstance(node, ast.Expr):
            module.definitions[last].append(node)  # the docstring of a constant
        else:
            names = list(_defined(node))
            last = names[0]
            module.definitions.setdefault(last, []).append(node)
            module.first_names |= dict.fromkeys(names, last)
    return module


def _defined(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name
        case ast.Assign(targets=targets):
            for target in targets:
                yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
        case _:
            raise AssertionError(f"line {node.lineno}: {type(node).__name__} at the top of a module")


def _names_in(node: ast.AST) -> Iterator[str]:
    yield from (part.id for part in ast.walk(node) if isinstance(part, ast.Name))


def _source_of(node: ast.stmt, lines: list[str]) -> str:
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return "\n".join(lines[first - 1 : node.end_lineno])


def _import_line(module: str, original: str, name: str) -> str:
    renamed = "" if name == (original or module) else f" as {name}"
    return f"from {module} import {original}{renamed}" if original else f"import {module}{renamed}"
