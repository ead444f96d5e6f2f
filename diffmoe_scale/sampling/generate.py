"""Pictures as a stream: batch after batch, none kept."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints  # Any: settings as a caller gave them

from PIL import Image
from tqdm import tqdm

from diffmoe_scale.config.sampling import SamplingConfig, check_sampler
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.sampling.batch import (
    Generated,
    Request,
    check_seed,
    generate_batch,
    latent_shape,
    number_requests,
)
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.telemetry.picture_grid import to_pixels
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)


def generate_batches(
    networks: Networks,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    *,
    title: str = "sampling",
    has_progress: bool = True,
) -> Iterator[Generated]:
    """The pictures of all requests in batches of `sampling.batch`, with a progress bar."""
    is_hidden = None if has_progress else True  # None: hidden where there is no terminal
    with tqdm(total=len(requests), desc=title, unit="image", disable=is_hidden) as progress:
        for first in range(0, len(requests), sampling.batch):
            batch = generate_batch(networks, requests[first : first + sampling.batch], sampling)
            is_finite_B = batch.images_BCHW.isfinite().flatten(1).all(1)
            if not is_finite_B.all():
                count = int((~is_finite_B).sum())
                logger.warning("numbers that are not finite in %s, drawn in grey", counted(count, "picture"))
            yield batch
            progress.update(len(batch.requests))


def generate(
    pipeline: Pipeline,
    prompts: str | int | Iterable[str | int],
    *,
    seed: int = 0,
    negative_prompt: str = "",
    **settings: Any,  # of SamplingConfig
) -> Iterator[Image.Image]:
    """Pictures of the prompts (captions or, for a class-conditional model, labels), one after another as they
    are drawn.

    Picture i starts from noise of (seed, i) alone, whatever is drawn beside it. `settings` replace the run's
    settings of sampling: steps=50, guidance=2.0, height=256, ... A picture's `info` says what it was made of.

    Raises: ValueError for wrong prompts, seed or settings, at once.
    """
    listed = [prompts] if isinstance(prompts, str | int) else list(prompts)
    sampling = override_sampling(pipeline.config.sampling, settings)
    requests = number_requests(listed, seed=seed, negative_prompt=negative_prompt)
    check_requests(requests, pipeline.config, sampling)
    latent_shape(pipeline.networks, sampling)
    return _pictures(pipeline.networks, requests, sampling)


def _pictures(
    networks: Networks, requests: Sequence[Request], sampling: SamplingConfig
) -> Iterator[Image.Image]:
    for batch in generate_batches(networks, requests, sampling):
        for request, pixels_HWC in zip(batch.requests, to_pixels(batch.images_BCHW), strict=True):
            picture = Image.fromarray(pixels_HWC)
            picture.info |= {"prompt": request.prompt, "seed": request.seed, "index": request.index}
            yield picture


def override_sampling(sampling: SamplingConfig, settings: Mapping[str, Any]) -> SamplingConfig:
    """Raises: ValueError for a setting that does not exist or a value that it does not take."""
    known = {field.name for field in fields(SamplingConfig)}
    hints = get_type_hints(SamplingConfig)
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"sampling has no setting {name!r}; expected one of {', '.join(sorted(known))}")
        choices = get_args(hints[name])
        kinds = (int, float) if hints[name] is float else (type(getattr(sampling, name)),)
        is_right = value in choices if choices else type(value) in kinds and math.isfinite(value)
        if not is_right:
            expected = f"one of {', '.join(choices)}" if choices else f"a number ({hints[name].__name__})"
            raise ValueError(f"sampling.{name} is {value!r}; expected {expected}")
    return replace(sampling, **settings)


def check_requests(requests: Sequence[Request], config: Config, sampling: SamplingConfig) -> None:
    """Raises: ValueError for what the model cannot draw."""
    check_sampler(sampling, config.diffusion.kind)
    is_class = config.model.conditioning == "class"
    for request in requests:
        if isinstance(request.prompt, bool) or not isinstance(request.prompt, int if is_class else str):
            wanted = "labels (int)" if is_class else "captions (str)"
            raise ValueError(
                f"{request.prompt!r:.80} is no prompt for a {config.model.conditioning}-conditional model; "
                f"expected {wanted}"
            )
        if isinstance(request.prompt, int) and not 0 <= request.prompt < config.model.num_classes:
            raise ValueError(f"the label is {request.prompt}; expected 0 to {config.model.num_classes - 1}")
        check_seed(request.seed)
        if request.negative_prompt and is_class:
            raise ValueError("a negative prompt was given, but a class-conditional model reads no captions")
        if request.negative_prompt and sampling.guidance == 1.0:
            raise ValueError(
                "a negative prompt was given, but sampling.guidance is 1 (no guidance) and it would have no "
                "effect; set sampling.guidance above 1"
            )
