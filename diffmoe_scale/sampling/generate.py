"""Pictures as a stream, one after another, for notebooks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints  # Any: settings as a caller gave them

from PIL import Image

from diffmoe_scale.config.sampling import SamplingConfig, check_capacity, check_guidance, check_sampler
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.section import is_finite
from diffmoe_scale.sampling.batch import (
    Request,
    check_seed,
    generate_batches,
    latent_shape,
    number_requests,
)
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.thresholds import find_selection
from diffmoe_scale.telemetry.picture_grid import to_pixels


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
    return _pictures(pipeline, requests, sampling)


def _pictures(
    pipeline: Pipeline, requests: Sequence[Request], sampling: SamplingConfig
) -> Iterator[Image.Image]:
    selection = find_selection(pipeline, sampling)
    for batch in generate_batches(pipeline.networks, requests, sampling, selection=selection):
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
        is_right = (
            value in choices
            if choices
            else type(value) in kinds and (isinstance(value, str) or is_finite(value))
        )
        if not is_right:
            kind = "text" if hints[name] is str else f"a number ({hints[name].__name__})"
            expected = f"one of {', '.join(choices)}" if choices else kind
            raise ValueError(f"sampling.{name} is {value!r}; expected {expected}")
    return replace(sampling, **settings)


def check_requests(requests: Sequence[Request], config: Config, sampling: SamplingConfig) -> None:
    """Raises: ValueError for what the model cannot draw."""
    check_sampler(sampling, config.diffusion.kind)
    check_capacity(sampling, config.moe)
    check_guidance(sampling, config.model.channels)
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
