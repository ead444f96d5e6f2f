"""The network as samplers call it: with guidance, and with the experts' load of every call noted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.moe.routing import Routing, Selection
from diffmoe_scale.sampling.call_capacity import ADAPTIVE_TIMES, CallCapacity
from diffmoe_scale.sampling.loads import LoadByTime


@dataclass(frozen=True)
class NetworkCall:
    """One call of the network: at which time each picture was, and how many experts took each of its tokens
    [L, B, N]; no layers in a dense model."""

    times: list[float]
    is_conditional: bool
    experts_LBN: Tensor


ROUNDING = 1e-6
"""More than the error of a time in fp32, less than any step."""
Watch = Callable[[NetworkCall], None]
"""Is shown each call of the network as it ends; an error that it raises ends the drawing."""


def guide(conditional: Tensor, unconditional: Tensor, scale: float, *, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): unconditional + scale * (conditional - unconditional).

    `rescale` is the share by which each sample gets the standard deviation of its conditional prediction back
    (arXiv 2305.08891 eq. 14 to 16).
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0:
        return guided
    wanted_B, found_B = (value.float().flatten(1).std(dim=1) for value in (conditional, guided))
    # A prediction of one value for all pixels has no deviation to be given back.
    factor_B = torch.where(found_B > 0, wanted_B / found_B, 1.0)
    factor_B = rescale * factor_B + (1 - rescale)
    return (guided * factor_B.view(-1, *[1] * (guided.dim() - 1))).to(guided.dtype)


def is_within(time: float, *, start: float, end: float) -> bool:
    """Whether guidance is on at a time of an fp32 schedule, which may lie beside the number that it stands
    for."""
    return end - ROUNDING <= time <= start + ROUNDING


class GuidedNetwork:
    """(x_t [B, C, H, W], t [B]) -> the network's output, led away from what `unconditional` gives.

    Guidance is on at times from `sampling.guidance_end` to `guidance_start` where `sampling.guidance` is not
    1, and costs a second call: for all if for one sample, here or where `is_any` looks. A learned variance,
    and what is behind `sampling.guidance_channels`, is the conditional call's. `loads` holds the experts'
    load of all calls, `calls` their number, `capacities` what each cost its pictures.
    """

    def __init__(
        self,
        networks: Networks,
        sampling: SamplingConfig,
        condition: Condition,
        unconditional: Condition,
        *,
        selection: Selection,
        is_any: Callable[[bool], bool] = bool,
        watch: Watch | None = None,
    ) -> None:
        self.networks, self.sampling, self.is_any, self.watch = networks, sampling, is_any, watch
        # Captions are encoded once, not at each time.
        self.condition = networks.denoiser.encode(condition)
        self.unconditional = networks.denoiser.encode(unconditional)
        self.selection = selection
        self.loads = LoadByTime()
        self.calls = 0
        self.capacities: list[CallCapacity] = []

    def __call__(self, x_BCHW: Tensor, t_B: Tensor) -> Tensor:
        times = t_B.tolist()
        value = self._call(x_BCHW, t_B, times, self.condition)
        start, end = self.sampling.guidance_start, self.sampling.guidance_end
        is_on = [self.sampling.guidance != 1.0 and is_within(time, start=start, end=end) for time in times]
        if self.sampling.guidance == 1.0 or not self.is_any(any(is_on)):
            return value
        # A call of its own: rules that count over a batch must not mix the two halves.
        baseline = self._call(x_BCHW, t_B, times, self.unconditional)
        channels = self.sampling.guidance_channels or x_BCHW.shape[1]
        guided = guide(
            value[:, :channels],
            baseline[:, :channels],
            self.sampling.guidance,
            rescale=self.sampling.guidance_rescale,
        )
        if not all(is_on):
            is_on_B = torch.tensor(is_on, device=x_BCHW.device)
            guided = torch.where(is_on_B[:, None, None, None], guided, value[:, :channels])
        return torch.cat([guided, value[:, channels:]], dim=1)

    def _call(self, x_BCHW: Tensor, t_B: Tensor, times: list[float], condition: Condition) -> Tensor:
        time_B = self.networks.objective.embedding_time(t_B)
        prediction = self.networks.denoiser(x_BCHW, time_B, condition, self.selection)
        self.calls += 1
        is_conditional = condition is self.condition
        if prediction.routings:
            self._add_loads(prediction.routings, times, is_conditional=is_conditional)
        if self.watch is not None:
            experts_LBN = _experts_of_tokens(prediction.routings, len(times))
            self.watch(NetworkCall(times, is_conditional, experts_LBN))
        value: Tensor = prediction.value_BCHW
        return value

    def _add_loads(self, routings: list[Routing], times: list[float], *, is_conditional: bool) -> None:
        load_LBE = torch.stack([_load_of_samples(routing.mask_SE, len(times)) for routing in routings])
        places = list(range(len(times)))
        self.capacities.append(CallCapacity(load_LBE.mean(dim=2), times, places, is_conditional))
        if self.sampling.sampler != "dopri5":
            load_LE = torch.stack([routing.metrics["load_E"] for routing in routings])
            self.loads.add(times[0], load_LE, weight=len(times))
            return
        # Each sample is at a time of its own.
        for row, time in enumerate(times):
            label = round(time * ADAPTIVE_TIMES) / ADAPTIVE_TIMES
            self.loads.add(label, load_LBE[:, row], weight=1)


def _load_of_samples(mask_SE: Tensor, num_samples: int) -> Tensor:
    """[B, E]: the share of a sample's tokens that each expert took, times E."""
    return mask_SE.unflatten(0, (num_samples, -1)).float().mean(dim=1) * mask_SE.shape[1]


def _experts_of_tokens(routings: list[Routing], num_samples: int) -> Tensor:
    """[L, B, N]: how many experts took each token."""
    counts = [routing.mask_SE.sum(dim=1).unflatten(0, (num_samples, -1)) for routing in routings]
    return torch.stack(counts) if counts else torch.zeros(0, num_samples, 0, dtype=torch.long)
