"""What a model answers to a fixed input is asked with little of it in memory."""

import weakref
from collections import Counter
from pathlib import Path

import torch

from diffmoe_scale.checkpoint.stored import open_weights
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.convert.verify import ask, make_question
from tests.convert.runs import make_run


def test_one_matrix_of_experts_and_one_linear_of_a_block_are_in_memory(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "model.depth=4", "sampling.selection=static", steps=[10])
    stored = open_weights(tmp_path / "run")
    alive, most, read = Counter[str](), Counter[str](), Counter[str]()

    def counted(name: str, tensor: LazyTensor) -> LazyTensor:
        kind = "expert" if ".experts." in name else "linear" if is_linear(name) else "other"

        def read_it() -> torch.Tensor:
            values = tensor.read()
            weakref.finalize(values.untyped_storage(), alive.subtract, [kind])
            alive[kind] += 1
            read[kind] += 1
            most[kind] = max(most[kind], alive[kind])
            return values

        return LazyTensor(tensor.shape, tensor.dtype, read_it)

    def is_linear(name: str) -> bool:
        shape = tensors[name].shape
        return ".blocks." in name and len(shape) == 2 and shape[0] >= 32

    tensors = stored.tensors
    object.__setattr__(stored, "tensors", {name: counted(name, tensor) for name, tensor in tensors.items()})
    ask(stored, "ema", make_question(stored.config))
    # A weight and a bias; each is read once.
    assert most["expert"] == 2 and read["expert"] == 2 * 4 * 4
    assert most["linear"] == 1 and read["linear"] > 4
