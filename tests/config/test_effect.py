"""Settings without an effect are named."""

from dataclasses import fields
from pathlib import Path

import pytest

from diffmoe_scale.config.effect import RULES, describe_idle, names_of
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from tests.recipes import RECIPES

CONFIGS = RECIPES


def test_every_rule_names_settings_that_there_are() -> None:
    config = Config()
    for rule in RULES:
        known = {field.name for field in fields(getattr(config, rule.section))}
        assert {*names_of(rule, config), *rule.others} <= known, rule.why


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_shipped_config_has_a_setting_without_effect(path: Path) -> None:
    assert describe_idle(load_config(path)) == []


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ([], []),
        (["moe.capacity=2"], []),
        (
            ["moe.num_experts=0", "moe.capacity=2", "moe.top_k=2", "moe.activation=swiglu"],
            ["without effect, since moe.num_experts is 0: moe.capacity=2.0, moe.top_k=2"],
        ),
        (["moe.top_k=2"], ["without effect, since experts choose, not tokens: moe.top_k=2"]),
        (
            ["moe.router=token_choice", "moe.top_k=2", "moe.capacity=2", "moe.predictor_tokens=0.5"],
            [
                "without effect, since moe.router is not diffmoe: moe.predictor_tokens=0.5",
                "without effect, since tokens choose moe.top_k experts: moe.capacity=2.0",
            ],
        ),
        (
            ["model.conditioning=class", "model.num_classes=3", "text.width=64"],
            ["without effect, since model.conditioning is class: text.width=64"],
        ),
        (["data.workers=1", "data.prefetch=3"], []),
        (["data.prefetch=3"], ["without effect, since data.workers is 0: data.prefetch=3"]),
        (
            ["sampling.tolerance=0.01", "telemetry.sample_prompts=[a cat]"],
            [
                "without effect, since sampling.sampler is not dopri5: sampling.tolerance=0.01",
                "without effect, since telemetry.sample_every is 0: telemetry.sample_prompts=('a cat',)",
            ],
        ),
    ],
)
def test_settings_that_change_nothing_are_named_once_with_the_reason(
    settings: list[str], lines: list[str]
) -> None:
    assert describe_idle(load_config(None, settings)) == lines


ACTIVE = [
    "moe.router=token_choice",
    "diffusion.time_sampling=logit_normal",
    "diffusion.prediction=sample",
    "buckets.enabled=true",
    "data.cache_folder=copies",
    "data.workers=1",
    "sampling.sampler=dopri5",
    "telemetry.validate_every=1",
    "data.validation=[a.tar]",
    "telemetry.sample_every=1",
    "telemetry.wandb=offline",
]


def test_rules_do_not_hold_where_their_settings_are_in_use() -> None:
    config = load_config(None, ACTIVE)
    holding = {rule.why for rule in RULES if rule.is_idle(config)}
    assert holding == {
        "moe.router is not diffmoe",
        "alignment.encoder is empty",
        "moe.router is not dsmoe",
        "moe.router is not expert_race",
        "moe.router is not expert_threshold",
        "moe.router is not promoe",
        "moe.router has no thresholds",
        "tokens choose moe.top_k experts",
        "sampling.selection is not interval",
        "sampling.capacity is 0",
        "telemetry.metrics_every is 0",
    }
