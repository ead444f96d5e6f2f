"""The Triton kernels without a GPU: compiled for one, and run by Triton's interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any  # Triton is untyped

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from diffmoe_scale.moe import triton_kernels as kernels

ROOT = Path(__file__).parents[2]
# What is no number: pointers (of the model's format unless named here) and sizes known when compiled.
POINTERS = {
    "place": "*i32",
    "ends": "*i32",
    "gate": "*fp32",
    "grad_gate": "*fp32",
    "mask": "*i1",
} | dict.fromkeys(("scores", "kth"), "*fp32")
FORMATS = (
    "x",
    "rows",
    "y",
    "bias",
    "grad_y",
    "grad_rows",
    "pre",
    "hidden",
    "grad",
    "grad_pre",
    "grad_bias",
    "grad_x",
)
SIZES: dict[str, Any] = {"HAS_GATE": True, "HAS_BIAS": True, "ROWS": 32, "COLUMNS": 64, "BLOCK": 1024}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("gather_kernel", {}),
    ("combine_kernel", {}),
    ("combine_kernel", {"HAS_GATE": False, "HAS_BIAS": False}),
    ("combine_backward_kernel", {}),
    ("activation_kernel", {"IS_GATED": False}),
    ("activation_kernel", {"IS_GATED": True, "HAS_BIAS": False}),
    ("activation_backward_kernel", {"IS_GATED": False}),
    ("activation_backward_kernel", {"IS_GATED": True, "HAS_BIAS": False}),
    ("select_kernel", {}),
    ("silu_kernel", {"y": "*fp32"}),
    ("silu_backward_kernel", {"grad": "*fp32"}),
]


@pytest.mark.parametrize(("name", "special"), CASES)
def test_a_kernel_compiles_for_a_hopper_gpu(name: str, special: dict[str, Any]) -> None:
    kernel = getattr(kernels, name)
    sizes = {
        key: value for key, value in (SIZES | special).items() if key in kernel.arg_names and key.isupper()
    }
    types = POINTERS | dict.fromkeys(FORMATS, "*bf16") | special
    signature = {key: types.get(key, "i32") for key in kernel.arg_names} | dict.fromkeys(sizes, "constexpr")
    places = {(kernel.arg_names.index(key),): value for key, value in sizes.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert ".target sm_90a" in compiled.asm["ptx"] and compiled.asm["cubin"]
    # Sums are in one order: nothing is added by atomics.
    assert not re.search(r"\b(atom|red)\.global", compiled.asm["ptx"])


def test_the_kernels_do_what_plain_torch_does() -> None:
    result = subprocess.run(
        [sys.executable, "tests/moe/triton_programs.py"],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    largest = {name: float(number) for name, number in map(str.split, result.stdout.splitlines())}
    exact = {"gather_rows", "select_from"}
    assert {name for name, number in largest.items() if number == 0} >= exact
    assert len(largest) == 8
    # Sums of 72 numbers of up to 10, in another order.
    assert max(largest.values()) < 5e-5, largest
