"""The code of a folder: one file that needs nothing of this package, whose name changes with its text."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffmoe_scale.convert import pipeline_code
from diffmoe_scale.convert.pipeline_code import digest, read_code
from diffmoe_scale.convert.shipped.experts import can_group, grouped_linear, loop_linear

NAMES = ("transformer", "pipeline", "text_encoder", "tokenizer", "open_clip")
THIRD = {"torch", "diffusers", "sentencepiece", "tokenizers", "open_clip"}


@pytest.mark.parametrize("name", NAMES)
def test_code_imports_only_what_a_folder_may_need(name: str) -> None:
    found = set()
    for node in ast.walk(ast.parse(read_code(name).text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add((node.module or "").split(".")[0])
    assert found - set(sys.stdlib_module_names) <= THIRD


@pytest.mark.parametrize("name", NAMES)
def test_code_registers_nothing_with_torch(name: str) -> None:
    """An operation of the same name would take the place of this package's."""
    assert "torch.library" not in read_code(name).text


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_defined(name: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(read_code(name).text)
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F811,F401,E9"]
    result = subprocess.run([*ruff, tmp_path / "code.py"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_the_name_has_the_hash_of_the_text(name: str) -> None:
    code = read_code(name)
    assert code.module == f"diffmoe_{name}_{digest(code.text)}"
    assert digest(code.text) != digest(code.text + " ")


def write_package(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


SHIPPED = '''"""What it is."""
import math
import torch.nn.functional as F
from diffmoe_scale.nn.a import double

VALUE = double(2) + math.floor(1.5)
'''
A = '''"""Others."""
from dataclasses import dataclass
from diffmoe_scale.nn.b import FACTOR, unused

LOW, HIGH = FACTOR, 2 * FACTOR
"""Numbers."""


@dataclass
class Unused:
    value: int = 0


def double(x):
    return x * LOW
'''
B = '''"""More."""
import json

FACTOR = 2


def unused():
    return json
'''


def test_only_what_is_used_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, {"convert/shipped/x.py": SHIPPED, "nn/a.py": A, "nn/b.py": B})
    monkeypatch.setattr(pipeline_code, "ROOT", tmp_path)
    read_code.cache_clear()
    parts = [
        '"""What it is.\n"""',
        "import math",
        "FACTOR = 2",
        'LOW, HIGH = FACTOR, 2 * FACTOR\n"""Numbers."""',
        "def double(x):\n    return x * LOW",
        "VALUE = double(2) + math.floor(1.5)\n",
    ]
    assert read_code("x").text == "\n\n".join(parts)
    read_code.cache_clear()


def test_two_definitions_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clash = '"""It."""\nfrom diffmoe_scale.nn.a import double\n\nFACTOR = double(3)\n'
    write_package(tmp_path, {"convert/shipped/y.py": clash, "nn/a.py": A, "nn/b.py": B})
    monkeypatch.setattr(pipeline_code, "ROOT", tmp_path)
    with pytest.raises(AssertionError, match="both define FACTOR"):
        read_code("y")


def test_grouped_products_are_those_of_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((20, 16), (3, 24, 16), (3, 24))
    )
    counts = [5, 0, 15]
    loop, grouped = (linear(rows, weight, bias, counts) for linear in (loop_linear, grouped_linear))
    torch.testing.assert_close(grouped, loop, rtol=2e-2, atol=2e-2)
    assert not can_group(rows, weight)  # on a CPU the loop computes
