"""Feed-forward networks of a model with other experts: of a dense one, of one with another number, and back.

D width, F width of a network's hidden layer, G pieces that a dense network is cut into.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffmoe_scale.checkpoint.tensor_file import LazyTensor, mean_tensor
from diffmoe_scale.nn.generator import named_generator

State = dict[str, LazyTensor]
PARTS = {"w_in": "w_in.weight", "b_in": "w_in.bias", "w_out": "w_out.weight", "b_out": "w_out.bias"}
"""The tensors of an expert and those of a dense network."""


@dataclass(frozen=True)
class Network:
    """The tensors of one feed-forward network, by `w_in`, `b_in`, `w_out`, `b_out`; without biases for
    SwiGLU."""

    tensors: State
    is_gated: bool

    def piece(self, number: int, count: int) -> "Network":
        """One of `count` networks whose outputs add up to this one's: its share of hidden units, and of the
        output's bias."""
        if count == 1:
            return self
        hidden = self.tensors["w_out"].shape[1] // count
        columns = slice(number * hidden, (number + 1) * hidden)

        def rows(values: Tensor) -> Tensor:
            halves = values.chunk(2 if self.is_gated else 1)
            return torch.cat([half[columns] for half in halves])

        changes: dict[
            str, tuple[Callable[[Tensor], Tensor], Callable[[tuple[int, ...]], tuple[int, ...]]]
        ] = {
            "w_in": (rows, lambda shape: (shape[0] // count, *shape[1:])),
            "b_in": (rows, lambda shape: (shape[0] // count,)),
            "w_out": (lambda values: values[:, columns].clone(), lambda shape: (shape[0], hidden)),
            "b_out": (lambda values: values / count, lambda shape: shape),
        }
        parts = {
            name: tensor.map(changes[name][0], changes[name][1](tensor.shape))
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=parts)

    def scaled(self, scale: float) -> "Network":
        """The network whose output is `scale` times this one's; of 0 it is 0 to the bit."""
        if scale == 1:
            return self

        def change(values: Tensor) -> Tensor:
            return torch.zeros_like(values) if scale == 0 else values * scale

        outputs = {name: tensor.map(change) for name, tensor in self.tensors.items() if name.endswith("out")}
        return replace(self, tensors=self.tensors | outputs)

    def noisy(self, noise: float, *name: str | int) -> "Network":
        """With `noise` standard deviations of each matrix added to it, drawn by name."""
        if noise == 0:
            return self

        def change(matrix: str) -> Callable[[Tensor], Tensor]:
            def add(values: Tensor) -> Tensor:
                drawn = torch.randn(values.shape, generator=named_generator(0, *name, matrix))
                return values + (noise * values.float().std() * drawn).to(values.dtype)

            return add

        matrices = {
            key: tensor.map(change(key)) for key, tensor in self.tensors.items() if key.startswith("w")
        }
        return replace(self, tensors=self.tensors | matrices)


def dense_network(tensors: State, start: str, *, is_gated: bool) -> Network:
    """The network whose names begin so, such as `transformer.blocks.1.feed_forward.`."""
    return Network(
        {part: tensors[start + name] for part, name in PARTS.items() if start + name in tensors},
        is_gated,
    )


def expert_network(tensors: State, start: str, expert: int, *, is_gated: bool) -> Network:
    """An expert of the layer whose names begin so."""
    names = {part: f"{start}experts.{expert}.{part}" for part in PARTS}
    return Network({part: tensors[name] for part, name in names.items() if name in tensors}, is_gated)


def put_dense(start: str, network: Network) -> State:
    return {start + PARTS[part]: tensor for part, tensor in network.tensors.items()}


def put_expert(start: str, expert: int, network: Network) -> State:
    return {f"{start}experts.{expert}.{part}": tensor for part, tensor in network.tensors.items()}


def mean_network(networks: Sequence[Network]) -> Network:
    """The network of mean weights."""
    first = networks[0]
    tensors = {name: mean_tensor([network.tensors[name] for network in networks]) for name in first.tensors}
    return replace(first, tensors=tensors)


def join_pieces(pieces: Sequence[Network]) -> Network:
    """The way back from pieces: one network whose output is the sum of theirs."""
    first = pieces[0]
    if len(pieces) == 1:
        return first

    def read_rows(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            halves = [piece.tensors[name].read().chunk(2 if first.is_gated else 1) for piece in pieces]
            return torch.cat([half for kind in zip(*halves, strict=True) for half in kind])

        return read

    def read_columns() -> Tensor:
        return torch.cat([piece.tensors["w_out"].read() for piece in pieces], dim=1)

    def read_bias() -> Tensor:
        return torch.stack([piece.tensors["b_out"].read() for piece in pieces]).sum(dim=0)

    reads = {"w_in": read_rows("w_in"), "b_in": read_rows("b_in"), "w_out": read_columns, "b_out": read_bias}
    tensors = {}
    for name, tensor in first.tensors.items():
        shape = list(tensor.shape)
        if name != "b_out":
            shape[name == "w_out"] *= len(pieces)
        tensors[name] = LazyTensor(tuple(shape), tensor.dtype, reads[name])
    return replace(first, tensors=tensors)


def mean_rows(tensor: LazyTensor, experts: int) -> LazyTensor:
    """Rows of a router or predictor, or thresholds, for fewer experts: the means of those with one remainder
    by `experts`."""
    return tensor.map(
        lambda values: values.unflatten(0, (-1, experts)).double().mean(dim=0).to(values.dtype),
        (experts, *tensor.shape[1:]),
    )


def repeat_rows(tensor: LazyTensor, experts: int, *, spread: float = 0.0, name: str = "") -> LazyTensor:
    """The same for more experts: each row again and again. `spread` changes each by so much of its standard
    deviation."""
    count = experts // tensor.shape[0]

    def repeat(values: Tensor) -> Tensor:
        rows = torch.cat([values] * count)
        if spread == 0:
            return rows
        drawn = torch.randn(rows.shape, generator=named_generator(0, "spread", name))
        return rows + (spread * rows.float().std() * drawn).to(rows.dtype)

    return tensor.map(repeat, (experts, *tensor.shape[1:]))
