"""Losses at fixed times: against a plain loop, by both rules, whoever shares the samples."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.moe.layer import single_rank_groups
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.fixed_times import FixedTimes, rules_of
from diffmoe_scale.train.loss import condition_of, latents_of
from tests.ranks import run_on_ranks
from tests.train.runs import tiny_batch, tiny_config, tiny_pipeline
from tests.train.test_validation import make_validation, settings

__all__ = ["settings"]


def test_losses_are_those_of_a_plain_loop_over_samples_times_and_rules() -> None:
    config = tiny_config(["moe.pool=sample"])
    networks = tiny_pipeline(config, single_rank_groups())
    for layer in networks.denoiser.moe_layers():
        layer.router.predictor.expert_threshold_E.fill_(0.5)
    batches = [tiny_batch(0, 2, config=config), tiny_batch(2, 2, config=config)]
    batches[1].weight_B[1] = 0.0
    found = FixedTimes(networks, rules_of(config), seed=9)
    with torch.no_grad():
        for batch in batches:
            found.add(batch)
    metrics = found.metrics(found.sums())
    names = {"train": Selection("train"), "threshold": Selection("threshold")}
    for rule, selection in names.items():
        losses_T, capacities_T = [], []
        for number in range(1, 9):
            losses, capacities = [], []
            for sample in (0, 1, 2):
                batch = tiny_batch(sample, 1, config=config)
                x_0 = latents_of(batch, networks.autoencoder, networks.device)
                noise = sample_noise(9, [sample], x_0.shape[1:], networks.device)[1]
                t_B = torch.tensor([number / 8])
                x_t = networks.objective.add_noise(x_0, noise, t_B)
                with torch.no_grad():
                    time_B = networks.objective.embedding_time(t_B)
                    answer = networks.denoiser(x_t, time_B, condition_of(batch, networks), selection)
                losses += networks.objective.loss(answer.value_BCHW, x_t, x_0, noise, t_B).tolist()
                capacities.append(float(answer.routings[0].metrics["capacity"]))
            losses_T.append(np.mean(losses))
            capacities_T.append(np.mean(capacities))
        values = [metrics[f"loss/validation_at/{rule}/{number}"] for number in range(1, 9)]
        np.testing.assert_allclose(values, losses_T, rtol=1e-5)
        assert metrics[f"loss/validation_at/{rule}"] == pytest.approx(np.mean(losses_T), rel=1e-5)
        assert metrics[f"moe/validation_capacity/{rule}"] == pytest.approx(np.mean(capacities_T), abs=1e-6)
    assert len(metrics) == 2 * (8 + 1 + 1)


def test_without_a_sample_there_is_no_loss() -> None:
    config = tiny_config([])
    found = FixedTimes(tiny_pipeline(config, single_rank_groups()), rules_of(config), seed=0)
    assert found.metrics(found.sums()) == {}


def test_rules_are_that_of_training_and_where_it_is_another_that_of_sampling() -> None:
    assert list(rules_of(Config())) == ["train", "threshold"]
    interval = rules_of(Config(sampling=SamplingConfig(selection="interval", gamma=0.2)))
    assert interval["interval"] == Selection("interval", 0.2)
    assert list(rules_of(Config(sampling=SamplingConfig(capacity=0.8)))) == ["train", "threshold"]
    static = SamplingConfig(selection="static")
    assert list(rules_of(Config(moe=MoEConfig(router="expert_choice"), sampling=static))) == ["train"]
    assert list(rules_of(Config(moe=MoEConfig(num_experts=0)))) == ["train"]


def fixed_losses(context: ParallelContext, settings: list[str]) -> dict[str, float]:
    validation, _ = make_validation(context, settings)
    return validation.loss()


def test_ranks_share_the_samples(settings: list[str], tmp_path: Path) -> None:
    # The top K of one sample does not depend on who else is on its rank.
    settings = [*settings, "moe.pool=sample", "telemetry.validation_time_samples=6"]
    (alone,) = run_on_ranks(fixed_losses, 1, settings)
    first, second = run_on_ranks(
        fixed_losses, 2, [*settings, "parallel.expert_parallel=2"], expert_parallel=2
    )
    assert first == second and first.keys() == alone.keys()
    for name in alone:
        assert first[name] == pytest.approx(alone[name], rel=1e-5), name
    (without,) = run_on_ranks(fixed_losses, 1, [*settings, "telemetry.validation_time_samples=0"])
    assert without == {"loss/validation": alone["loss/validation"]}
