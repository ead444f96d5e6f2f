"""The networks of the DiT family in plain torch, on tensors by their own names: what a conversion is compared
with. A tensor is read where it is used, so that no model is in memory whole.

B samples, N tokens a sample, S = B * N, D width, E experts.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.convert.dit import POSITIONS, Shapes
from diffmoe_scale.nn.embeddings import position_embedding


class PlainDiT:
    """DiT, SiT or a DiffMoE, EC-DiT or TC-DiT of the reference at inference: z, its own time, labels to its
    own output [B, outputs, H, W]."""

    def __init__(
        self, state: Mapping[str, LazyTensor], shapes: Shapes, *, heads: int, capacity: float, top_k: int
    ) -> None:
        self.state = state
        self.shapes = shapes
        self.heads = heads
        self.capacity = capacity
        self.top_k = top_k

    def get(self, name: str) -> Tensor:
        return self.state[name].read().float()

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.get(f"{name}.bias") if f"{name}.bias" in self.state else None
        return F.linear(x, self.get(f"{name}.weight"), bias)

    def __call__(self, z_BCHW: Tensor, time_B: Tensor, labels_B: Tensor) -> Tensor:
        shapes, patch = self.shapes, self.shapes.patch
        rows, columns = z_BCHW.shape[2] // patch, z_BCHW.shape[3] // patch
        weight, bias = self.get("x_embedder.proj.weight"), self.get("x_embedder.proj.bias")
        x_BND = F.conv2d(z_BCHW, weight, bias, stride=patch).flatten(2).transpose(1, 2)
        if POSITIONS in self.state:
            x_BND = x_BND + self.get(POSITIONS)
        else:
            x_BND = x_BND + position_embedding(rows, columns, shapes.width)
        hidden_BD = F.silu(self.linear("t_embedder.mlp.0", sinusoids(time_B)))
        condition_BD = self.linear("t_embedder.mlp.2", hidden_BD)
        condition_BD = condition_BD + self.get("y_embedder.embedding_table.weight")[labels_B]
        condition_BD = F.silu(condition_BD)
        for block in range(shapes.depth):
            x_BND = self.block(block, x_BND, condition_BD)
        shift, scale = self.linear("final_layer.adaLN_modulation.1", condition_BD)[:, None].chunk(2, dim=-1)
        y = self.linear("final_layer.linear", norm(x_BND) * (1 + scale) + shift)
        y = y.unflatten(-1, (patch, patch, shapes.outputs)).unflatten(1, (rows, columns))
        y_BCHW: Tensor = torch.einsum("bhwpqc->bchpwq", y).flatten(4).flatten(2, 3)
        return y_BCHW

    def block(self, number: int, x_BND: Tensor, condition_BD: Tensor) -> Tensor:
        name = f"blocks.{number}"
        modulation = self.linear(f"{name}.adaLN_modulation.1", condition_BD)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x_BND = x_BND + gate1 * self.attention(f"{name}.attn", norm(x_BND) * (1 + scale1) + shift1)
        inner_BND = norm(x_BND) * (1 + scale2) + shift2
        if number in self.shapes.moe_blocks:
            return x_BND + gate2 * self.experts(f"{name}.mlp", inner_BND)
        return x_BND + gate2 * self.network(f"{name}.mlp", inner_BND)

    def attention(self, name: str, x_BND: Tensor) -> Tensor:
        heads = self.linear(f"{name}.qkv", x_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        return self.linear(f"{name}.proj", (weights @ value).transpose(1, 2).flatten(2))

    def network(self, name: str, x: Tensor) -> Tensor:
        if f"{name}.fc1.weight" in self.state:
            return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x), approximate="tanh"))
        hidden = F.silu(self.linear(f"{name}.gate_proj", x)) * self.linear(f"{name}.up_proj", x)
        return self.linear(f"{name}.down_proj", hidden)

    def experts(self, name: str, x_BND: Tensor) -> Tensor:
        x_SD = x_BND.flatten(0, 1)
        gate = "gate.weight" if self.shapes.router == "token_choice" else "gate_weight"
        scores_SE = F.linear(x_SD, self.get(f"{name}.{gate}")).softmax(dim=-1)
        mask_SE = self.selection(name, x_SD, scores_SE, num_samples=x_BND.shape[0])
        y_SD = torch.zeros_like(x_SD)
        for expert in range(self.shapes.num_experts):
            taken = mask_SE[:, expert]
            answer = self.network(f"{name}.experts.{expert}", x_SD[taken])
            y_SD[taken] += scores_SE[taken, expert, None] * answer
        if self.shapes.shared_width:
            y_SD = y_SD + self.network(f"{name}.shared_experts", x_SD)
        return y_SD.view_as(x_BND)

    def selection(self, name: str, x_SD: Tensor, scores_SE: Tensor, *, num_samples: int) -> Tensor:
        """Which expert takes which token, [S, E]."""
        mask_SE = torch.zeros_like(scores_SE, dtype=torch.bool)
        match self.shapes.router:
            case "token_choice":
                return mask_SE.scatter(1, scores_SE.topk(self.top_k, dim=1).indices, True)
            case "expert_choice":
                mask_BNE, scores_BNE = (x.unflatten(0, (num_samples, -1)) for x in (mask_SE, scores_SE))
                count = int(scores_BNE.shape[1] / scores_BNE.shape[2] * self.capacity)
                return mask_BNE.scatter(1, scores_BNE.topk(count, dim=1).indices, True).flatten(0, 1)
        hidden_SD = F.silu(self.linear(f"{name}.capacity_predictor.0", x_SD))
        probability_SE = self.linear(f"{name}.capacity_predictor.2", hidden_SD).sigmoid()
        counts = (probability_SE > self.get(f"{name}.expert_threshold")).sum(dim=0).tolist()
        for expert, count in enumerate(counts):
            mask_SE[scores_SE[:, expert].topk(count).indices, expert] = True
        return mask_SE


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def sinusoids(time_B: Tensor) -> Tensor:
    """Cosines, then sines, of time times 128 falling frequencies."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128)
    angles = time_B[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
