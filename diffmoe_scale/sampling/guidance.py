"""The network as samplers call it: with guidance, and with the experts' load of every call noted."""

import torch
from torch import Tensor

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.loads import LoadByTime


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): unconditional + scale * (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)


class GuidedNetwork:
    """(x_t [B, C, H, W], t [B]) -> the network's output, led away from what `unconditional` gives.

    Guidance is on at times from `sampling.guidance_end` where `sampling.guidance` is not 1, and costs a
    second call. `loads` holds the experts' load of all calls.
    """

    def __init__(
        self, networks: Networks, sampling: SamplingConfig, condition: Condition, unconditional: Condition
    ) -> None:
        self.networks, self.sampling = networks, sampling
        # Captions are encoded once, not at each time.
        self.condition = networks.denoiser.encode(condition)
        self.unconditional = networks.denoiser.encode(unconditional)
        self.selection = Selection(rule=sampling.selection, gamma=sampling.gamma)
        self.loads = LoadByTime()

    def __call__(self, x_BCHW: Tensor, t_B: Tensor) -> Tensor:
        value = self._call(x_BCHW, t_B, self.condition)
        if self.sampling.guidance != 1.0 and float(t_B[0]) >= self.sampling.guidance_end:
            # A call of its own: rules that count over a batch must not mix the two halves.
            baseline = self._call(x_BCHW, t_B, self.unconditional)
            value = guide(value, baseline, self.sampling.guidance)
        return value

    def _call(self, x_BCHW: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        time_B = self.networks.objective.embedding_time(t_B)
        prediction = self.networks.denoiser(x_BCHW, time_B, condition, self.selection)
        if prediction.routings:
            load_LE = torch.stack([routing.metrics["load_E"] for routing in prediction.routings])
            self.loads.add(float(t_B[0]), load_LE, weight=len(t_B))
        value: Tensor = prediction.value_BCHW
        return value
