"""Bytes of tensors as they come and go, real ones or on `meta`."""

import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any  # arguments of torch's operations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

LET_GO_S = 2e-3
"""Time in which gloo's thread lets go of the tensors of a collective that is over."""
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


class StorageTracker(TorchDispatchMode):
    """Counts the storages on a device that operations inside make, until nothing refers to them. Views count
    once.

    A yes-or-no question of a tensor on `meta` is answered with yes, and a copy of one on the CPU is zeros.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.current = 0
        """Bytes now."""
        self.peak = 0
        """Most bytes since `reset_peak`."""
        self.launches = self.traffic = 0
        """Operations that compute something, and bytes that those read and write which are no products."""
        self._is_after_collective = False
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and _goes_to_cpu(kwargs or {}):
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        if self._is_after_collective:
            time.sleep(LET_GO_S)
        self._is_after_collective = func.namespace == "c10d"
        answer = func(*args, **(kwargs or {}))
        before = len(self._alive)
        for entry in (answer,) if isinstance(answer, Tensor) else tree_iter(answer):
            if isinstance(entry, Tensor):
                self.add(entry)
        name = func._schema.name
        if (len(self._alive) > before or name.endswith("_")) and "empty" not in name:
            self.launches += 1
            if name not in PRODUCTS:
                tensors = [entry for entry in tree_iter((args, answer)) if isinstance(entry, Tensor)]
                self.traffic += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return answer

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that was made outside, or by an operation."""
        if tensor.device.type != self._device.type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()

        def forget(_: object) -> None:
            del self._alive[key]
            self.current -= size

        self._alive[key] = weakref.ref(storage, forget), size
        self.current += size
        self.peak = max(self.peak, self.current)

    def add_module(self, module: nn.Module) -> None:
        """Count the parameters and buffers of a module."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.add(tensor)

    def reset_peak(self) -> None:
        """What comes is held against the bytes of now."""
        self.peak = self.current


def _goes_to_cpu(arguments: Mapping[str, Any]) -> bool:
    device = arguments.get("device")
    return device is not None and device.type == "cpu"
