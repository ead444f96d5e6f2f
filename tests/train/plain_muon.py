"""The specification of Muon: one matrix after the other, on one process."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from diffmoe_scale.config.schema import Config

PARTS = {
    "attention.qkv.weight": 3,
    "attention.projection.weight": 1,
    "cross_attention.query.weight": 1,
    "cross_attention.key_value.weight": 2,
    "modulation.weight": 6,
    "feed_forward.w_in.weight": 1,
    "feed_forward.w_out.weight": 1,
    "w_in": 1,
    "w_out": 1,
}
"""Matrices in a parameter of a block, by the end of its name; SwiGLU's w_in has two."""


def num_parts(name: str, config: Config) -> int:
    """0 for AdamW's parameters."""
    if ".blocks." not in name or ".router." in name or "final_modulation" in name:
        return 0
    parts = next((count for end, count in PARTS.items() if name.endswith(f".{end}")), 0)
    is_gated = config.moe.activation == "swiglu" and name.removesuffix(".weight").endswith(".w_in")
    return 2 * parts if is_gated else parts


class PlainMuon:
    """Muon with `muon_scale` rms, and AdamW for the rest."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], groups: list[dict[str, object]], config: Config
    ):
        self.config, self.learning_rate = config.optimizer, config.optimizer.learning_rate
        self.parts = {parameter: num_parts(name, config) for name, parameter in parameters.items()}
        adamw = [group for group in groups if not self.parts[group["params"][0]]]  # type: ignore[index]
        self.adamw = AdamW(adamw, eps=config.optimizer.eps)
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {
            parameter: {"momentum": torch.zeros_like(parameter)} if parts else self.adamw.state[parameter]
            for parameter, parts in self.parts.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        self.adamw.step()
        rate = self.learning_rate * self.config.muon_learning_rate_ratio
        for parameter, parts in self.parts.items():
            if not parts:
                continue
            assert parameter.grad is not None
            momentum = self.state[parameter]["momentum"]
            momentum.copy_(0.95 * momentum + parameter.grad)
            update = parameter.grad + 0.95 * momentum
            # Views of the parameter: each part is moved in place.
            for weight, grad, matrix in zip(
                parameter.chunk(parts), parameter.grad.chunk(parts), update.chunk(parts), strict=True
            ):
                if not grad.any():
                    continue
                direction = 0.2 * max(matrix.shape) ** 0.5 * plain_newton_schulz(matrix)
                weight.copy_((1 - rate * self.config.weight_decay) * weight - rate * direction)

    def zero_grad(self) -> None:
        for parameter in self.parts:
            parameter.grad = None


def plain_newton_schulz(matrix: Tensor) -> Tensor:
    """Keller Jordan's, in the format of the matrix."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
