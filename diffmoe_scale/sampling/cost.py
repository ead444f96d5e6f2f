"""What a picture cost, as every result says it."""

from dataclasses import dataclass

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.plan.picture import count_call_flops, format_flops
from diffmoe_scale.sampling.batch import latent_shape
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.loads import LoadByTime


@dataclass(frozen=True)
class Cost:
    """Means over pictures: average inference capacity (DiffMoE eq. 15), calls of the network (guidance is a
    second one), and its operations."""

    capacity: float
    calls: float
    flops: float

    def __str__(self) -> str:
        return (
            f"average inference capacity {self.capacity:.3f}, {self.calls:.4g} network calls a picture, "
            f"{format_flops(self.flops)} a picture"
        )


def measure_cost(
    pipeline: Pipeline, sampling: SamplingConfig, loads: LoadByTime, *, calls: float, num_pictures: int
) -> Cost:
    """From the experts' loads and the `calls` of the network for each of `num_pictures`.

    The network's operations are counted as in `plan`: captions at full length, without decoding latents.
    """
    call = count_call_flops(
        pipeline.config,
        latent_shape=latent_shape(pipeline.networks, sampling),
        has_predictor=sampling.selection != "static",
    )
    flops = call.of_picture(calls=calls, capacity_of_calls=loads.work / max(1, num_pictures))
    return Cost(loads.capacity, calls, flops)
