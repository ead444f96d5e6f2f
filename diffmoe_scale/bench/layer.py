"""The MoE layer against the dense network of equal activated parameters, research code's loop, and its expert
GEMMs alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from diffmoe_scale.bench.contenders import layer_configs, scatter_loop, set_up_device
from diffmoe_scale.bench.options import SAMPLE_TOKENS, DataType, LayerOptions, LayerShape
from diffmoe_scale.bench.timing import MIB, measure_memory, quartiles, ratios, time_interleaved
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.layer import MoELayer, single_rank_groups
from diffmoe_scale.moe.routing import RoutingContext, Selection
from diffmoe_scale.nn.feed_forward import FeedForward
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS

PHASES = ("forward", "forward+backward", "inference")
CHEAP = 0.25
"""Share of tokens and of width that a cheap capacity predictor has, beside the paper's."""
Network = Callable[..., object]
"""Of x_SD, and of the context for a layer with experts."""


class ExpertGemms:
    """The expert matrix products alone, each into memory that is ready: with the capacity predictor what no
    layer can undercut."""

    def __init__(self, layer: MoELayer, x_SD: Tensor, *, num_rows: int) -> None:
        """`num_rows` of all experts together, a multiple of the tokens."""
        p = {name: parameter.detach() for name, parameter in layer.expert_parameters()}
        self.weights = [(p[f"experts.{i}.w_in"], p[f"experts.{i}.w_out"]) for i in layer.local_expert_indices]
        # Twice the fair share of an expert bounds the loads of `set_thresholds`.
        rows, (hidden, width) = 2 * num_rows // len(self.weights), self.weights[0][0].shape
        self.x_RD = x_SD.repeat(num_rows // len(x_SD), 1)
        self.hidden_RF, self.y_RD = x_SD.new_empty(rows, hidden), x_SD.new_empty(rows, width)
        self.grads = [(torch.empty_like(w_in), torch.empty_like(w_out)) for w_in, w_out in self.weights]

    @torch.no_grad()
    def __call__(self, rows_per_expert: list[int], *, has_backward: bool) -> None:
        for rows, x_KD, (w_in_FD, w_out_DF), (grad_in_FD, grad_out_DF) in zip(
            rows_per_expert, self.x_RD.split(rows_per_expert), self.weights, self.grads, strict=True
        ):
            hidden_KF, y_KD = self.hidden_RF[:rows], self.y_RD[:rows]
            torch.mm(x_KD, w_in_FD.t(), out=hidden_KF)
            torch.mm(hidden_KF, w_out_DF.t(), out=y_KD)
            if has_backward:
                torch.mm(y_KD.t(), hidden_KF, out=grad_out_DF)
                torch.mm(y_KD, w_out_DF, out=hidden_KF)
                torch.mm(hidden_KF.t(), x_KD, out=grad_in_FD)
                torch.mm(hidden_KF, w_in_FD, out=y_KD)


@torch.no_grad()
def set_thresholds(layer: MoELayer, x_SD: Tensor, *, experts_per_token: int = 1) -> list[int]:
    """Let the predictor give the experts from half to one and a half of a fair share of these tokens, so many
    a token on average.

    Returns the rows of every expert.
    """
    probability_SE = layer.router.predictor(x_SD).sigmoid()
    num_tokens, num_experts = probability_SE.shape
    num_rows = experts_per_token * num_tokens
    rows = [round(num_rows / num_experts * (0.5 + i / max(1, num_experts - 1))) for i in range(num_experts)]
    rows[-1] += num_rows - sum(rows)
    ordered_SE = probability_SE.sort(dim=0, descending=True).values
    layer.router.predictor.update_threshold(ordered_SE[rows, torch.arange(num_experts)])
    taken_E: list[int] = (probability_SE > layer.router.predictor.threshold()).sum(dim=0).tolist()
    return taken_E


def run_phase(
    network: Network, x_SD: Tensor, grad_SD: Tensor, phase: str, arguments: tuple[RoutingContext, ...]
) -> None:
    """One call of `network`, with the phase's backward pass."""
    with torch.set_grad_enabled(phase != "inference"):
        answer = network(x_SD, *arguments)
        y_SD, routing = answer if isinstance(answer, tuple) else (answer, None)
    if phase == "forward+backward":
        roots = [y_SD] if routing is None else [y_SD, *routing.aux_losses.values()]
        torch.autograd.backward(roots, [grad_SD, *[None] * (len(roots) - 1)])


def context_of(x_SD: Tensor, phase: str) -> RoutingContext:
    """The context of a layer that is measured on `x_SD`."""
    num_samples = max(1, len(x_SD) // SAMPLE_TOKENS)
    selection = Selection("threshold" if phase == "inference" else "train")
    return RoutingContext(num_samples, x_SD.detach(), x_SD.new_zeros(num_samples, x_SD.shape[1]), selection)


class ShapeBench:
    """The contenders of one shape, on the same random tokens."""

    def __init__(self, shape: LayerShape, *, dtype: DataType, device: torch.device) -> None:
        generator, torch_dtype = torch.Generator().manual_seed(0), NUMBER_FORMATS[dtype]
        self.shape, self.device = shape, device
        self.x_SD, self.grad_SD = (
            torch.randn(shape.num_tokens, shape.width, generator=generator).to(device, torch_dtype)
            for _ in range(2)
        )
        self.x_SD.requires_grad_()
        dense = FeedForward(shape.width, 4 * shape.width, is_gated=False)
        dense.initialize(generator)
        self.layers: dict[str, MoELayer] = {}
        base = MoEConfig(
            num_experts=shape.num_experts,
            expert_width_ratio=shape.width_ratio,
            capacity=float(shape.experts_per_token),
        )
        cheap = replace(base, predictor_tokens=CHEAP, predictor_width=CHEAP)
        for name, config in (layer_configs(base, device) | {"cheap_predictor": cheap}).items():
            layer = MoELayer(config, width=shape.width, layer_index=0, groups=single_rank_groups())
            layer.initialize(0)
            self.layers[name] = layer.to(device, torch_dtype)
        modules: list[nn.Module] = [dense.to(device, torch_dtype), *self.layers.values()]
        self.with_gradient = [self.x_SD, *(tensor for module in modules for tensor in module.parameters())]
        self.networks: dict[str, Network] = {
            "dense": dense,
            "scatter_loop": partial(scatter_loop, self.layers["loop"]),
            **self.layers,
        }
        a_token = shape.experts_per_token
        self.uneven_rows = {
            name: set_thresholds(layer, self.x_SD, experts_per_token=a_token)
            for name, layer in self.layers.items()
        }
        self.num_rows = a_token * shape.num_tokens
        self.gemms = ExpertGemms(self.layers["loop"], self.x_SD.detach(), num_rows=self.num_rows)

    def calls(self, phase: str) -> dict[str, Callable[[], None]]:
        """What is timed, by contender."""
        context = context_of(self.x_SD, phase)

        def call(name: str) -> None:
            arguments = () if name == "dense" else (context,)
            run_phase(self.networks[name], self.x_SD, self.grad_SD, phase, arguments)
            for tensor in self.with_gradient:
                tensor.grad = None

        calls: dict[str, Callable[[], None]] = {name: partial(call, name) for name in self.networks}
        even_rows = [self.num_rows // self.shape.num_experts] * self.shape.num_experts
        rows = self.uneven_rows["loop"] if phase == "inference" else even_rows
        gemms = partial(self.gemms, rows, has_backward=phase == "forward+backward")

        def limit() -> None:
            gemms()
            self.predict(phase)

        return calls | {"expert_gemms": gemms, "gemms_and_predictor": limit}

    def predict(self, phase: str) -> None:
        """The paper's capacity predictor alone, with the phase's backward pass."""
        predictor = self.layers["loop"].router.predictor
        with torch.set_grad_enabled(phase != "inference"):
            logits_SE = predictor(self.x_SD.detach())
        if phase == "forward+backward":
            logits_SE.backward(torch.ones_like(logits_SE))
            predictor.zero_grad()

    def rows(self, phase: str, *, rounds: int) -> list[dict[str, object]]:
        """A row for every contender."""
        calls = self.calls(phase)
        seconds = time_interleaved(calls, rounds=rounds, device=self.device)
        table: list[dict[str, object]] = []
        for name, times in seconds.items():
            ms = quartiles([1e3 * second for second in times])
            row = {
                "shape": str(self.shape),
                "phase": phase,
                "contender": name,
                "ms": ms,
                "tokens_per_s": 1e3 * self.shape.num_tokens / ms["median"],
                "over_dense": ratios(times, seconds["dense"]),
                "over_gemms": ratios(times, seconds["expert_gemms"]),
                "over_limit": ratios(times, seconds["gemms_and_predictor"]),
            }
            table.append(row | measure_memory(calls[name], self.device))
        return table


def bench_layers(options: LayerOptions) -> tuple[list[dict[str, object]], torch.device]:
    """A row for every shape, phase and contender, and the device that they were measured on."""
    device = set_up_device(options.device, threads=options.threads)
    table: list[dict[str, object]] = []
    for shape in options.shapes:
        bench = ShapeBench(shape, dtype=options.dtype, device=device)
        for phase in PHASES:
            table += bench.rows(phase, rounds=options.rounds)
    return table, device


def describe_buffers(options: LayerOptions) -> str:
    """A line for each shape: the memory that a layer with a buffer of every token for every expert takes."""
    lines = []
    for shape in options.shapes:
        numbers = shape.num_tokens * shape.num_experts * shape.width
        mib = numbers * NUMBER_FORMATS[options.dtype].itemsize / MIB
        lines.append(f"{shape}: a buffer of tokens x experts x width would be {mib:,.0f} MiB")
    return "\n".join(lines)
