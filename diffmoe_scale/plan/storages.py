"""Bytes of tensors as they come and go, real ones or on `meta`."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any  # arguments of torch's operations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class StorageTracker(TorchDispatchMode):
    """Counts the storages on a device that operations inside make, until nothing refers to them. Views count
    once.

    A yes-or-no question of a tensor on `meta` is answered with yes.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.current = 0
        """Bytes now."""
        self.peak = 0
        """Most bytes since `reset_peak`."""
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True
        answer = func(*args, **(kwargs or {}))
        for entry in (answer,) if isinstance(answer, Tensor) else tree_iter(answer):
            if isinstance(entry, Tensor):
                self.add(entry)
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
