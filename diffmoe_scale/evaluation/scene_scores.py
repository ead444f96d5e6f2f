"""The six suites of scenes over one model: pictures, scores, chance, and what the experts did."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.evaluation.results import Capacity, Evaluation, SuiteScore
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.batch import generate_batches, latent_shape, number_requests
from diffmoe_scale.sampling.cost import measure_cost
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.loads import LoadByTime
from diffmoe_scale.sampling.thresholds import find_selection
from diffmoe_scale.scenes.suites import SUITES, Prompt, build_suite, score_images, shuffled
from diffmoe_scale.telemetry.picture_grid import GRID_COLUMNS, save_image_grid

logger = logging.getLogger(__name__)

NUM_SHOWN = 24


def evaluate(
    pipeline: Pipeline, sampling: SamplingConfig, *, prompts_per_suite: int, seed: int
) -> Evaluation:
    """What goes into RUN/evaluation.json; a grid of pictures for each suite goes into RUN/samples.

    Raises: ValueError for a class-conditional model, and for pictures that are not square.
    """
    if pipeline.config.model.conditioning != "text":
        raise ValueError(
            "the compositional suites need captions, but this model is class-conditional "
            "(model.conditioning=class)"
        )
    _, height, width = latent_shape(pipeline.networks, sampling)
    if height != width:
        raise ValueError(
            "the suites are about square pictures; make sampling.height and sampling.width equal, or leave "
            "them out"
        )
    selection = find_selection(pipeline, sampling)
    scores, loads = {}, LoadByTime()
    calls: list[float] = []
    pipeline.directory.samples.mkdir(exist_ok=True)
    for name in SUITES:
        prompts = build_suite(name, num_prompts=prompts_per_suite, seed=seed)
        scores[name] = _score(
            pipeline, sampling, name, prompts, selection=selection, seed=seed, loads=loads, calls=calls
        )
        logger.info("%s %.2f (captions shuffled: %.2f)", name, scores[name].score, scores[name].shuffled)
    average_calls = statistics.fmean(calls)
    cost = measure_cost(pipeline, sampling, loads, calls=average_calls, num_pictures=len(calls))
    return Evaluation(
        checkpoint=str(pipeline.checkpoint),
        step=pipeline.step,
        prompts_per_suite=prompts_per_suite,
        sampling=asdict(sampling),
        scores=scores,
        capacity=Capacity(
            average=loads.capacity,
            times=loads.times,
            layers=[layer.layer_index for layer in pipeline.networks.denoiser.moe_layers()],
            load_TLE=loads.load_TLE.numpy(),
        ),
        calls=average_calls,
        flops=cost.flops,
    )


def _score(
    pipeline: Pipeline,
    sampling: SamplingConfig,
    name: str,
    prompts: Sequence[Prompt],
    *,
    selection: Selection,
    seed: int,
    loads: LoadByTime,
    calls: list[float],
) -> SuiteScore:
    """One suite, judged batch by batch; adds what the experts did to `loads`, and how often the network was
    called for each picture to `calls`."""
    requests = number_requests([prompt.text for prompt in prompts], seed=seed)
    others = shuffled(prompts)
    passed: list[bool] = []
    by_chance: list[bool] = []
    shown: list[Tensor] = []
    batches = generate_batches(pipeline.networks, requests, sampling, selection=selection, title=name)
    for batch in batches:
        first, last = len(passed), len(passed) + len(batch.requests)
        passed += score_images(batch.images_BCHW, prompts[first:last])
        by_chance += score_images(batch.images_BCHW, others[first:last])
        loads.merge(batch.loads)
        calls += [batch.calls] * len(batch.requests)
        if first < NUM_SHOWN:
            shown.append(batch.images_BCHW[: NUM_SHOWN - first].cpu())
    save_image_grid(
        torch.cat(shown),
        [prompt.text for prompt in prompts[:NUM_SHOWN]],
        pipeline.directory.samples / f"evaluation-{name}.png",
        columns=GRID_COLUMNS,
        passed=passed[:NUM_SHOWN],
    )
    count = len(prompts)
    return SuiteScore(score=sum(passed) / count, shuffled=sum(by_chance) / count, prompts=count)
