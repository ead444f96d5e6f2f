"""Settings that follow from others unless they are named: what fits the router and the diffusion process."""

from collections.abc import Mapping
from typing import Any  # YAML trees before validation

from diffmoe_scale.config.routers import RULES, WITH_POOL
from diffmoe_scale.config.run import RunConfig
from diffmoe_scale.config.schema import Config

MADE_FOR: dict[str, dict[str, object]] = {
    "dsmoe": {"gate": "sigmoid"},
    "expert_race": {"gate": "identity"},
    "expert_threshold": {"gate": "sigmoid", "threshold_decay": 0.99},
    "promoe": {"gate": "identity"},
}
"""Settings of `moe` that a router's source has."""
WITH_SHARED_EXPERT = ("dsmoe", "expert_threshold", "promoe")
SHARED_EXPERT = {"shared_experts": 1, "expert_width_ratio": 2.0}
"""One expert and the shared one cost as much as a dense network."""
WARMUP_SHARE = 0.2
"""Of all steps, in which experts of `expert_threshold` take their top K (4,000 of 20,000 in its paper)."""


def follow_others(tree: dict[str, Any], words: Mapping[str, Any]) -> None:
    """Complete a tree of settings in place. `words` are the sections of the command line alone: a router or
    process named there replaces the file's, so what the file chose for its own no longer counts.

    A router is completed by the gate that its source has, the rule of sampling that it has, its shared expert
    unless a setting of experts' widths is named, and its warm-up.
    DDPM predicts noise, with its own loss and times. Joint attention needs text tokens as wide as the model.
    """
    router = _get(tree, "moe", "router")
    if isinstance(router, str) and router in RULES and _get(tree, "moe", "num_experts") != 0:
        _follow_router(tree, words, router)
    if _get(tree, "diffusion", "kind") == "ddpm":
        is_changed = _get(words, "diffusion", "kind") is not None
        for key, value in (("prediction", "velocity"), ("loss", "velocity"), ("time_sampling", "uniform")):
            _choose(tree, words, "diffusion", key, value, is_forced=is_changed)
    if _get(tree, "model", "attention") == "joint":
        is_changed = _get(words, "model", "attention") is not None
        _choose(tree, words, "model", "text_projection", True, is_forced=is_changed)


def _follow_router(tree: dict[str, Any], words: Mapping[str, Any], router: str) -> None:
    is_changed = _get(words, "moe", "router") is not None
    if _get(tree, "sampling", "selection") not in RULES[router]:
        _choose(tree, words, "sampling", "selection", RULES[router][0], is_forced=is_changed)
    if router not in WITH_POOL:
        _choose(tree, words, "moe", "pool", "rank", is_forced=is_changed)
    for key, value in MADE_FOR.get(router, {}).items():
        _choose(tree, words, "moe", key, value, is_forced=is_changed)
    is_wide = any(_get(tree, "moe", key) is not None for key in SHARED_EXPERT)
    if router in WITH_SHARED_EXPERT and not is_wide:
        for key, value in SHARED_EXPERT.items():
            _choose(tree, words, "moe", key, value, is_forced=False)
    if router == "expert_threshold":
        steps = _get(tree, "run", "steps")
        warmup = round(WARMUP_SHARE * (steps if isinstance(steps, int) else RunConfig().steps))
        _choose(tree, words, "moe", "threshold_warmup_steps", warmup, is_forced=False)


def describe_choices(config: Config) -> list[str]:
    """A sentence for each setting that is another than by default because of the router or the process."""
    lines = []
    moe = config.moe
    if moe.num_experts and moe.router != "diffmoe":
        keys = [] if moe.router in WITH_POOL else ["pool"]
        keys += MADE_FOR.get(moe.router, {})
        if moe.router in WITH_SHARED_EXPERT:
            keys += SHARED_EXPERT
        if moe.router == "expert_threshold":
            keys.append("threshold_warmup_steps")
        said = [f"sampling.selection={config.sampling.selection}"]
        said += [f"moe.{key}={getattr(moe, key)}" for key in keys]
        is_own = moe.router in MADE_FOR
        why = f"is {moe.router}" if is_own else f"{moe.router} has no capacity predictor"
        lines.append(f"{', '.join(said)}: moe.router {why}")
    diffusion = config.diffusion
    if diffusion.kind == "ddpm":
        lines.append(
            f"diffusion.prediction={diffusion.prediction}, diffusion.loss={diffusion.loss}, "
            f"diffusion.time_sampling={diffusion.time_sampling}: diffusion.kind is ddpm"
        )
    if config.model.attention == "joint":
        lines.append("model.text_projection=true: model.attention is joint")
    return lines


def _choose(
    tree: dict[str, Any], words: Mapping[str, Any], section: str, key: str, value: object, *, is_forced: bool
) -> None:
    """Set what is not named, or is named only in the file though the command line changed what it fits."""
    if _get(words, section, key) is None and (is_forced or _get(tree, section, key) is None):
        tree.setdefault(section, {})[key] = value


def _get(tree: Mapping[str, Any], section: str, key: str) -> object:
    found = tree.get(section)
    return found.get(key) if isinstance(found, dict) else None
