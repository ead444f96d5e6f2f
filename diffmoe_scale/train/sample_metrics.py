"""FID and other metrics of pictures that the model in training draws.

B pictures of a batch; H W C height, width and colours.
"""

from collections.abc import Sequence
from itertools import cycle, islice

import torch

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.reader import Reader, iterate_captions
from diffmoe_scale.evaluation.metrics.scorer import load_metrics
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.waiting import wait_for_ranks
from diffmoe_scale.sampling.batch import number_requests
from diffmoe_scale.sampling.generate import generate_batches
from diffmoe_scale.sampling.ranks import Ranks
from diffmoe_scale.telemetry.picture_grid import to_pixels


class SampleMetrics:
    """The same `telemetry.metrics_samples` prompts and noises each time, drawn by all ranks and not kept."""

    def __init__(
        self,
        config: Config,
        context: ParallelContext,
        networks: Networks,
        *,
        sampling: SamplingConfig,
        reader: Reader,
    ) -> None:
        """Load the metrics' networks and reference; `reader` gives the captions. Collective over the world.

        Raises: ValueError for wrong files, RunError, OSError.
        """
        self.context, self.networks, self.sampling = context, networks, sampling
        # Its time-out is that of slow files: the main rank reads the reference, or its cache.
        self.metrics = load_metrics(config.metrics, context.device, group=context.waiting_group)
        prompts = metric_prompts(config, reader, config.telemetry.metrics_samples)
        self.requests = number_requests(prompts, seed=config.run.seed)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """`metrics/fid` and so on, of the weights that the network holds. Collective over the world."""
        ranks, scorer, drawn = Ranks(self.context), self.metrics.start(), 0
        share = ranks.share(range(len(self.requests)))
        # Ranks that share experts call the network equally often: what is drawn for that does not count.
        places = [*share.places, *([0] * (share.count - len(share.places)))]
        asked = [self.requests[place] for place in places]
        for batch in generate_batches(self.networks, asked, self.sampling, has_progress=False):
            mine = share.places[drawn : drawn + len(batch.requests)]
            drawn += len(batch.requests)
            if mine:
                pixels_BHWC = to_pixels(batch.images_BCHW)[: len(mine)]
                scorer.update(pixels_BHWC, mine, [str(self.requests[place].prompt) for place in mine])
        wait_for_ranks(self.context.waiting_group)
        scorer.merge(self.context.waiting_group)
        values = ranks.of_main(scorer.values)
        return {f"metrics/{value.name.replace(':', '_')}": value.value for value in values}


def metric_prompts(config: Config, reader: Reader, count: int) -> Sequence[str | int]:
    """The first captions of `reader`, or all labels; from the beginning again where there are fewer."""
    known: Sequence[str | int]
    if config.model.conditioning == "class":
        known = range(config.model.num_classes)
    else:
        known = list(islice(iterate_captions(reader, count), count)) or [""]
    return list(islice(cycle(known), count))
