"""What a model answers to a fixed input, block by block: no model is in memory whole.

B samples, L text tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any  # hooks

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.checkpoint.manifest import MOST_SHOWN, different_shapes
from diffmoe_scale.checkpoint.stored import StoredWeights
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.schema import Config
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.encoders.text.features import StreamWidths, TextFeatures, TextStream
from diffmoe_scale.model.condition import NUM_SIZE_CONDITIONS, Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.moe.grouped_linear import LoopLinear
from diffmoe_scale.moe.predictor import CapacityPredictor
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.plan.assumed import latents_of, streams_of
from diffmoe_scale.plan.build import build_denoiser, latent_shape, plain_experts
from diffmoe_scale.words import counted

ASSUMED = "sd-vae"
TIMES = (0.2, 0.75)
NUM_TOKENS = 5
VOCABULARY = "text_encoder.token_embedding.weight"
MOST_PATCHES = 64
"""Of a side of the input: larger models are asked about a smaller picture."""


@dataclass(frozen=True)
class Question:
    """Noisy latents, times t of ours, labels (in class mode); of everything else a model draws its own."""

    x_BCHW: Tensor
    t_B: Tensor
    labels_B: Tensor


def make_question(config: Config, *, seed: int = 0) -> Question:
    """A fixed input; the last label is the null class."""
    generator = torch.Generator().manual_seed(seed)
    _, size, _ = latent_shape(_here(config))
    size = min(size, MOST_PATCHES * config.model.patch_size)
    x_BCHW = torch.randn(len(TIMES), config.model.channels, size, size, generator=generator)
    return Question(x_BCHW, torch.tensor(TIMES), torch.tensor([0, config.model.num_classes]))


def _here(config: Config) -> Config:
    """The config for fp32 on a CPU. An autoencoder that is not on this machine is taken for one of factor 8:
    the same for source and target, whose equality is asked about."""
    config = plain_experts(config)
    try:
        latents_of(config.autoencoder, channels=config.model.channels)
    except ValueError:
        config = replace(config, autoencoder=replace(config.autoencoder, path=ASSUMED))
    return config


def build_meta(config: Config, tensors: Mapping[str, LazyTensor]) -> Denoiser:
    """The model of a config on `meta`, with the vocabulary that the tensors have."""
    config = _here(config)
    if VOCABULARY in tensors:
        text = replace(config.text, vocabulary=tensors[VOCABULARY].shape[0])
        config = replace(config, text=text)
    return build_denoiser(config)


def check_tensors(config: Config, stored: StoredWeights) -> None:
    """Raises: ValueError naming the tensors of a family that are not those of the config's model."""
    families = [name for name in stored.families if name != "buffer"]
    for number, family in enumerate(families):
        tensors = stored.family(family)
        denoiser = build_meta(config, tensors)
        expected = {name: tuple(tensor.shape) for name, tensor in denoiser.canonical_parameters().items()}
        held = {name: tensor.shape for name, tensor in tensors.items()}
        if number == 0:
            expected |= {name: tuple(tensor.shape) for name, tensor in denoiser.canonical_buffers().items()}
            held |= {name: tensor.shape for name, tensor in stored.family("buffer").items()}
        if wrong := different_shapes(held, expected, by="by the settings"):
            raise ValueError(
                f"{stored.path} does not hold the tensors that its settings ask for: "
                f"{counted(len(wrong), 'tensor')}, such as {'; '.join(wrong[:MOST_SHOWN])}"
            )


def not_finite(stored: StoredWeights) -> list[str]:
    """The tensors with NaN or infinite numbers; each is read."""
    return [
        name
        for name, tensor in stored.tensors.items()
        if tensor.dtype.is_floating_point and not tensor.read().isfinite().all()
    ]


@contextmanager
def explain_numbers(stored: StoredWeights) -> Iterator[None]:
    """Where a comparison fails: names the weights that are not finite, if there are any.

    Raises: ValueError instead of the RunError.
    """
    try:
        yield
    except RunError as error:
        if not (bad := not_finite(stored)):
            raise
        raise ValueError(
            f"{stored.path} has NaN or infinite numbers in {counted(len(bad), 'tensor')}, such as "
            f"{', '.join(bad[:MOST_SHOWN])}, so that outputs cannot be compared; take an earlier "
            "checkpoint, or --no-verify to have them as they are"
        ) from error


@torch.no_grad()
def ask(stored: StoredWeights, family: str, question: Question, selection: Selection | None = None) -> Tensor:
    """The model's output [B, C, H, W] with one family of weights; experts choose as in sampling, or by
    `selection`."""
    config = stored.config
    selection = selection or Selection(config.sampling.selection, config.sampling.gamma)
    tensors = stored.family(family) | stored.family("buffer")
    denoiser = build_meta(config, tensors).eval()
    weights = _Weights(denoiser, tensors)
    weights.fill_when_called()
    objective = build_objective(config.diffusion)
    prediction = denoiser(
        question.x_BCHW,
        objective.embedding_time(question.t_B),
        make_condition(config, denoiser, question),
        selection,
    )
    # Hooks and weights know each other: without this they would stay until Python looks for cycles.
    weights.release(*weights.on_meta)
    value_BCHW: Tensor = prediction.value_BCHW
    return value_BCHW


def make_condition(config: Config, denoiser: Denoiser, question: Question) -> Condition:
    """Labels, or drawn features and ids; sizes where the model sees them."""
    count = question.x_BCHW.shape[0]
    generator = torch.Generator().manual_seed(1)
    sizes_BZ = torch.randint(0, 512, (count, NUM_SIZE_CONDITIONS), generator=generator).float()
    if config.model.conditioning == "class":
        return Condition(question.labels_B, sizes_BZ)
    encoder = denoiser.text_encoder
    frozen = [
        _draw_stream(widths, count, generator)
        for number, widths in enumerate(streams_of(config.text))
        if encoder is None or number != denoiser.trained_stream
    ]
    condition = Condition(
        sizes_BZ=sizes_BZ,
        text=TextFeatures(tuple(frozen)) if frozen else None,
        dropped_B=torch.arange(count) % 2 == 1,
    )
    if encoder is None:
        return condition
    length = min(NUM_TOKENS, encoder.position_LT.shape[0])
    vocabulary = encoder.token_embedding.weight.shape[0]
    return replace(condition, tokens_BL=torch.randint(1, vocabulary, (count, length), generator=generator))


def _draw_stream(widths: StreamWidths, count: int, generator: torch.Generator) -> TextStream:
    tokens_BLT = torch.randn(count, NUM_TOKENS, widths.token, generator=generator)
    mask_BL = torch.arange(NUM_TOKENS) < torch.arange(count)[:, None] + 2
    pooled_BV = torch.randn(count, widths.pooled, generator=generator) if widths.pooled else None
    return TextStream(tokens_BLT, mask_BL, pooled_BV)


class _Weights:
    """Puts tensors in the place of a module's own on `meta`, and takes them away again."""

    def __init__(self, denoiser: Denoiser, tensors: Mapping[str, LazyTensor]) -> None:
        self.denoiser, self.tensors = denoiser, tensors
        self.names = {
            id(tensor): name
            for name, tensor in (denoiser.canonical_parameters() | denoiser.canonical_buffers()).items()
        }
        self.on_meta: dict[nn.Module, tuple[dict[str, Any], dict[str, Any]]] = {}

    def fill_when_called(self) -> None:
        """Of the blocks' linears one at a time, of experts one matrix. All else now: it is small, and others
        than the module itself read it, too."""
        inner = list(self.denoiser.transformer.blocks.modules())
        read = {id(module.output) for module in inner if isinstance(module, CapacityPredictor)}
        called = {id(module) for module in inner if isinstance(module, nn.Linear)} - read
        for module in self.denoiser.modules():
            if isinstance(module, LoopLinear):
                # mypy wants no other forward.
                module.forward = self.forward_of(module)  # type: ignore[method-assign, assignment]
            elif id(module) in called:
                module.register_forward_pre_hook(lambda own, _: self.fill(own))
                module.register_forward_hook(lambda own, *_: self.release(own))
            else:
                self.fill(module)

    def fill(self, module: nn.Module) -> None:
        self.on_meta[module] = dict(module._parameters), dict(module._buffers)
        for key, own in module._parameters.items():
            if own is not None:
                module._parameters[key] = nn.Parameter(self._read(own), requires_grad=False)
        for key, held in module._buffers.items():
            if held is not None:
                module._buffers[key] = self._read(held)

    def release(self, *modules: nn.Module) -> None:
        for module in modules:
            parameters, buffers = self.on_meta.pop(module)
            module._parameters.update(parameters)
            module._buffers.update(buffers)

    def forward_of(self, linear: LoopLinear) -> Callable[[Tensor, list[int]], tuple[Tensor, None]]:
        """Its forward, with the weights of the expert in turn alone in memory."""

        def forward(x_RI: Tensor, rows_per_expert: list[int]) -> tuple[Tensor, None]:
            weights, biases = linear.expert_tensors()
            parts = []
            for expert, x in enumerate(x_RI.split(rows_per_expert)):
                bias_O = self._read(biases[expert]) if biases else None
                parts.append(F.linear(x, self._read(weights[expert]), bias_O))
            return torch.cat(parts), None

        return forward

    def _read(self, own: Tensor) -> Tensor:
        return self.tensors[self.names[id(own)]].read().to(own.dtype)


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest element."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
