"""Representation alignment in training: a projector from a block's tokens to features of a frozen encoder.

The projector is no part of the model: it has an optimizer of its own (Adam in fp32, whole on every rank). So
the engine's slices, gradient norm and averages are those of a run without it, and exports do not hold it.

B samples, N tokens, D width of the model, Z width of the features.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.checkpoint.manifest import ALIGNMENT
from diffmoe_scale.config.alignment import AlignmentConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.encoders.vision.teacher import Teacher
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.nn.generator import named_generator
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.slice import Slice
from diffmoe_scale.train.loss import Aligned


class Projector(nn.Module):
    """REPA's: three linear layers with SiLU between."""

    def __init__(self, width: int, hidden: int, features: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(inner, outer)
            for inner, outer in ((width, hidden), (hidden, hidden), (hidden, features))
        )

    def initialize(self, seed: int) -> None:
        """Xavier and zeros, from the seed alone."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.xavier_uniform_(parameter, generator=named_generator(seed, "alignment", name))

    def forward(self, x_BND: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            x_BND = layer(F.silu(x_BND) if place else x_BND)
        return x_BND


class Alignment:
    """The loss of a micro-batch, and the projector's steps. `fingerprint` is the encoder's."""

    def __init__(
        self, config: Config, context: ParallelContext, teacher: Teacher, *, fingerprint: str
    ) -> None:
        self.settings: AlignmentConfig = config.alignment
        self.optimizer_settings = config.optimizer
        self.context, self.teacher, self.fingerprint = context, teacher, fingerprint
        self.patch = config.model.patch_size
        self.projector = Projector(config.model.width, self.settings.projector_width, teacher.width)
        self.projector.initialize(config.run.seed)
        self.projector.to(context.device)
        self.moments = {
            name: {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
            for name, parameter in self.projector.named_parameters()
        }
        self.steps = torch.zeros(1, dtype=torch.int64, device=context.device)

    def of(self, batch: Batch, latents_BCHW: Tensor, *, step: int) -> Aligned | None:
        """What the loss of a micro-batch has of alignment; None after `alignment.end_step`."""
        if not self.settings.is_on(step):
            return None
        features_BNZ = self.features_of(batch, latents_BCHW)
        return Aligned(self.settings.weight, lambda tokens_BND: self.cosine(tokens_BND, features_BNZ))

    def features_of(self, batch: Batch, latents_BCHW: Tensor) -> Tensor:
        """What the encoder says of the batch's pictures, on the grid of the network's tokens, from the shards
        or computed."""
        if batch.teacher_BNZ is not None:
            return batch.teacher_BNZ.to(self.context.device).float()
        grid = latents_BCHW.shape[2] // self.patch, latents_BCHW.shape[3] // self.patch
        assert batch.pixels_BHWC is not None, "checked with the shards"
        pictures_BCHW = to_unit_range(batch.pixels_BHWC.to(self.context.device, non_blocking=True))
        return self.teacher.features(pictures_BCHW, grid)

    def cosine(self, tokens_BND: Tensor, features_BNZ: Tensor) -> Tensor:
        """[B]: the mean over tokens of the cosine of what is projected and the encoder's features."""
        projected_BNZ = self.projector(tokens_BND.float())
        return F.cosine_similarity(projected_BNZ, features_BNZ, dim=-1, eps=1e-8).mean(1)

    @torch.no_grad()
    def step(self, learning_rate: float, *, is_skipped: bool) -> None:
        """AdamW over the mean gradient of all ranks; none where the engine skipped its step, or where there
        was no loss. Collective over `dp_group`."""
        gradients = {name: parameter.grad for name, parameter in self.projector.named_parameters()}
        self.projector.zero_grad(set_to_none=True)
        known = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        if is_skipped or not known:
            return
        flat = torch.cat([gradient.flatten() for gradient in known.values()])
        dist.all_reduce(flat, group=self.context.dp_group)
        flat /= self.context.dp_group.size()
        self.steps += 1
        parts = flat.split([gradient.numel() for gradient in known.values()])
        parameters = dict(self.projector.named_parameters())
        for (name, gradient), part in zip(known.items(), parts, strict=True):
            self._update(parameters[name], self.moments[name], part.view_as(gradient), learning_rate)

    def _update(
        self, parameter: nn.Parameter, moments: Mapping[str, Tensor], gradient: Tensor, learning_rate: float
    ) -> None:
        settings, count = self.optimizer_settings, int(self.steps)
        moments["exp_avg"].lerp_(gradient, 1 - settings.beta1)
        moments["exp_avg_sq"].lerp_(gradient.square(), 1 - settings.beta2)
        mean = moments["exp_avg"] / (1 - settings.beta1**count)
        square = moments["exp_avg_sq"] / (1 - settings.beta2**count)
        parameter.sub_(learning_rate * mean / (square.sqrt() + settings.eps))

    def state(self) -> dict[str, Slice]:
        """As `Engine.state`: the live tensors, the same on every rank."""
        found = {f"{ALIGNMENT}/steps": Slice.whole(self.steps)}
        for name, parameter in self.projector.named_parameters():
            found[f"{ALIGNMENT}/weight/{name}"] = Slice.whole(parameter.detach())
            found |= {
                f"{ALIGNMENT}/{kind}/{name}": Slice.whole(tensor)
                for kind, tensor in self.moments[name].items()
            }
        return found


def build_alignment(config: Config, context: ParallelContext, denoiser: Denoiser) -> Alignment | None:
    """None without `alignment.encoder`; else `denoiser` is made to answer the tokens that are aligned.
    Collective over `waiting_group`: one rank hashes the encoder's weights while the others wait.

    Raises: ValueError for a folder that holds no such encoder.
    """
    if not config.alignment.encoder:
        return None
    teacher = Teacher(config.alignment.encoder, precision=config.alignment.precision)
    found = [teacher.fingerprint() if context.is_main else ""]
    if context.waiting_group.size() > 1:
        dist.broadcast_object_list(found, group=context.waiting_group, group_src=0)
    denoiser.transformer.aligned_block = config.alignment.block
    return Alignment(config, context, teacher, fingerprint=found[0])
