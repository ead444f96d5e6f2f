import importlib.util
import sys
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch

from diffmoe_scale.moe.transformer_engine import precision_context
from tests.moe.layers import make_layer

WIDTH = 64


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is not None, reason="Transformer Engine is installed"
)
def test_missing_package_is_an_error_that_names_the_command():
    with pytest.raises(ValueError, match=r"moe.backend is 'transformer_engine' but .*pip install"):
        make_layer(backend="transformer_engine", width=WIDTH)


def pretend_installed(monkeypatch: pytest.MonkeyPatch, **functions: object) -> None:
    package, module = ModuleType("transformer_engine"), ModuleType("transformer_engine.pytorch")
    vars(module).update(functions)
    vars(package)["pytorch"] = module
    monkeypatch.setitem(sys.modules, "transformer_engine", package)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", module)


def test_package_without_a_gpu_is_an_error_that_names_the_other_backend(monkeypatch):
    pretend_installed(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"no CUDA device; set moe.backend to 'grouped'"):
        precision_context("model")


@pytest.mark.parametrize(
    "precision, asked", [("fp8_delayed", "fp8"), ("fp8_current", "fp8"), ("fp8_block", "fp8_block_scaling")]
)
def test_fp8_on_a_gpu_that_lacks_it_is_an_error_with_the_packages_reason(monkeypatch, precision, asked):
    answers = {
        f"is_{name}_available": lambda return_reason, good=name != asked: (good, "needs a newer GPU")
        for name in ("fp8", "fp8_block_scaling")
    }
    pretend_installed(monkeypatch, **answers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(
        ValueError,
        match=rf"moe.precision is '{precision}' but this GPU cannot do it \(needs a newer GPU\); "
        "set moe.precision to 'model'",
    ):
        precision_context(precision)
    assert precision_context("model") is nullcontext


@pytest.mark.gpu
@pytest.mark.te
@pytest.mark.parametrize("rows", [[32, 16, 48, 0], [5, 0, 33, 7], [0, 0, 0, 0]])
# bf16 keeps 8 bits and FP8 3 or 4; errors of single products average out in the sums.
@pytest.mark.parametrize(
    "precision, tolerance", [("model", 0.01), ("fp8_delayed", 0.1), ("fp8_current", 0.1), ("fp8_block", 0.1)]
)
def test_transformer_engine_equals_the_loop(precision, tolerance, rows):
    if not torch.cuda.is_available() or importlib.util.find_spec("transformer_engine") is None:
        pytest.skip("needs a CUDA device and Transformer Engine")
    x_RD, grad_y_RD = (torch.randn(sum(rows), WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    results = {}
    for backend in ("loop", "transformer_engine"):
        experts = make_layer(
            backend=backend, width=WIDTH, precision="model" if backend == "loop" else precision
        ).experts.to("cuda", torch.bfloat16)
        for _ in range(2):  # delayed scaling takes its first scale from the first pass
            experts.zero_grad()
            x = x_RD.clone().requires_grad_()
            y_RD, _ = experts(x, rows, torch.ones(sum(rows), device="cuda"))
            y_RD.backward(grad_y_RD)
        results[backend] = {"y": y_RD, "dx": x.grad} | {
            name: p.grad for name, p in experts.expert_parameters()
        }
    for name, expected in results["loop"].items():
        error = (results["transformer_engine"][name].float() - expected.float()).norm()
        assert error <= tolerance * expected.float().norm() + 1e-6, name
