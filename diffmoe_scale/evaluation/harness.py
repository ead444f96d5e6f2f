"""All suites over one model: pictures, scores, chance, and what the experts did."""

import logging
from dataclasses import asdict

import torch

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.evaluation.results import Capacity, Evaluation, SuiteScore
from diffmoe_scale.sampling.euler import sampling_times
from diffmoe_scale.sampling.loading import LoadedModel, draw
from diffmoe_scale.scenes.suites import SUITES, build_suite, score_images, shuffled
from diffmoe_scale.telemetry.picture_grid import save_image_grid

logger = logging.getLogger(__name__)

NUM_SHOWN = 24
GRID_COLUMNS = 8


def evaluate(
    model: LoadedModel, sampling: SamplingConfig, *, prompts_per_suite: int, seed: int
) -> Evaluation:
    """What goes into RUN/evaluation.json; a grid of pictures for each suite goes into RUN/samples."""
    if model.config.model.conditioning != "text":
        raise ValueError(
            "the compositional suites need captions, but this model is class-conditional "
            "(model.conditioning=class)"
        )
    scores: dict[str, SuiteScore] = {}
    loads = []
    model.directory.samples.mkdir(exist_ok=True)
    for name in SUITES:
        prompts = build_suite(name, num_prompts=prompts_per_suite, seed=seed)
        generated = draw(model.networks, [prompt.text for prompt in prompts], sampling, seed=seed, title=name)
        passed = score_images(generated.images_BCHW, prompts)
        by_chance = score_images(generated.images_BCHW, shuffled(prompts))
        scores[name] = SuiteScore(
            score=sum(passed) / len(passed), shuffled=sum(by_chance) / len(by_chance), prompts=len(prompts)
        )
        loads.append(generated.load_TLE)
        save_image_grid(
            generated.images_BCHW[:NUM_SHOWN],
            [prompt.text for prompt in prompts[:NUM_SHOWN]],
            model.directory.samples / f"evaluation-{name}.png",
            columns=GRID_COLUMNS,
            passed=passed[:NUM_SHOWN],
        )
        logger.info("%s %.2f (captions shuffled: %.2f)", name, scores[name].score, scores[name].shuffled)
    load_TLE = torch.stack(loads).mean(0)
    has_experts = load_TLE.numel() > 0
    capacity = Capacity()
    if has_experts:
        capacity = Capacity(
            average=float(load_TLE.mean()),
            times=sampling_times(sampling.steps)[:-1].tolist(),
            layers=[layer.layer_index for layer in model.networks.denoiser.moe_layers()],
            load_TLE=load_TLE.numpy(),
        )
    return Evaluation(
        checkpoint=str(model.checkpoint),
        step=model.step,
        prompts_per_suite=prompts_per_suite,
        sampling=asdict(sampling),
        scores=scores,
        capacity=capacity,
    )
