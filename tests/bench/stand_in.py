"""A stand-in for models/models_DiffMoE.py of a reference checkout: DiT with expert-choice layers, written for
the test from the paper, in the plainest way.

B samples, N tokens, S = B * N, D width, E experts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diffmoe_scale.nn.embeddings import position_embedding


class Mlp(nn.Module):
    def __init__(
        self, in_features: int, hidden_features: int, act_layer: Callable[[], nn.Module], drop: float
    ) -> None:
        super().__init__()
        assert drop == 0
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class SparseMoEBlock(nn.Module):
    def __init__(
        self,
        experts: Sequence[nn.Module],
        hidden_dim: int,
        num_experts: int,
        n_shared_experts: int,
        capacity: int,
    ) -> None:
        super().__init__()
        assert n_shared_experts == 0 and capacity == 1
        self.gate_weight = nn.Parameter(torch.zeros(num_experts, hidden_dim))
        self.experts = nn.ModuleList(experts)
        self.capacity_predictor = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, num_experts)
        )
        self.register_buffer("expert_threshold", torch.zeros(num_experts))
        self.register_buffer("ema_decay", torch.tensor([0.95]))

    def forward(self, x_BND: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x_SD = x_BND.flatten(0, 1)
        gate_SE = (x_SD @ self.gate_weight.T).softmax(-1)
        prediction_SE = self.capacity_predictor(x_SD.detach())
        y_SD, mask_SE = torch.zeros_like(x_SD), torch.zeros_like(gate_SE)
        counts_E = (prediction_SE.sigmoid() > self.get_buffer("expert_threshold")).sum(0)
        for i, expert in enumerate(self.experts):
            count = len(x_SD) // len(self.experts) if self.training else int(counts_E[i])
            taken_K = gate_SE[:, i].topk(count).indices
            mask_SE[taken_K, i] = 1
            y_SD = y_SD.index_add(0, taken_K, gate_SE[taken_K, i, None] * expert(x_SD[taken_K]))
        if not self.training:
            return y_SD.view_as(x_BND), None, None
        shape = *x_BND.shape[:2], -1
        return y_SD.view_as(x_BND), mask_SE.view(shape), prediction_SE.view(shape)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        y: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return y


def normed(x_BND: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    x_BND = nn.functional.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6)
    return x_BND * (1 + scale_BD[:, None]) + shift_BD[:, None]


class Block(nn.Module):
    def __init__(self, width: int, heads: int, num_experts: int) -> None:
        super().__init__()

        def network() -> Mlp:
            return Mlp(width, 4 * width, act_layer=lambda: nn.GELU(approximate="tanh"), drop=0)

        self.attn = Attention(width, heads)
        self.has_experts = num_experts > 0
        self.mlp = (
            SparseMoEBlock([network() for _ in range(num_experts)], width, num_experts, 0, 1)
            if num_experts
            else network()
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, 1)
        x = x + gate1[:, None] * self.attn(normed(x, shift1, scale1))
        answer = self.mlp(normed(x, shift2, scale2))
        y, *rest = answer if self.has_experts else (answer, None, None)
        return x + gate2[:, None] * y, rest[0], rest[1]


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y: Tensor = self.linear(normed(x, *self.adaLN_modulation(c).chunk(2, 1)))
        return y


class Patches(nn.Module):
    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)


class Labels(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)


class Times(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_B: Tensor) -> Tensor:
        angles = t_B[:, None] * 10000 ** (-torch.arange(128) / 128)
        y: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], 1))
        return y


class DiT(nn.Module):
    def __init__(
        self,
        *,
        input_size: int,
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        class_dropout_prob: float,
        num_classes: int,
        learn_sigma: bool,
        MoE_config: dict[str, int],
    ) -> None:
        super().__init__()
        assert not learn_sigma and MoE_config["interleave"] and 0 < class_dropout_prob < 1e-6
        self.patch, self.side, count = patch_size, input_size // patch_size, MoE_config["num_experts"]
        self.x_embedder = Patches(patch_size, in_channels, hidden_size)
        self.t_embedder, self.y_embedder = Times(hidden_size), Labels(num_classes, hidden_size)
        position_ND = position_embedding(self.side, self.side, hidden_size)
        self.pos_embed = nn.Parameter(position_ND[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, i % 2 * count) for i in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * in_channels)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor
    ) -> tuple[Tensor, str, list[int], list[Tensor], list[Tensor], float]:
        x = self.x_embedder.proj(x).flatten(2).mT + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder.embedding_table(y)
        masks, predictions = [], []
        for block in self.blocks:
            x, mask, prediction = block(x, c)
            if mask is not None:
                masks.append(mask)
                predictions.append(prediction)
        x = self.final_layer(x, c).unflatten(1, (self.side, self.side))
        x = x.unflatten(3, (self.patch, self.patch, -1)).permute(0, 5, 1, 3, 2, 4)
        return x.flatten(4).flatten(2, 3), "Capacity_Pred", [1], masks, predictions, 0.01
