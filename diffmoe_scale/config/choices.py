"""Settings that follow from others unless they are named: what fits the router and the diffusion process."""

from collections.abc import Mapping
from typing import Any  # YAML trees before validation

from diffmoe_scale.config.schema import Config

ROUTERS_WITHOUT_PREDICTOR = ("expert_choice", "token_choice")


def follow_others(tree: dict[str, Any], words: Mapping[str, Any]) -> None:
    """Complete a tree of settings in place. `words` are the sections of the command line alone: a router or
    process named there replaces the file's, so what the file chose for its own no longer counts.

    Without a capacity predictor experts choose their top K in sampling, from the pool that the router has.
    DDPM predicts noise, with its own loss and times. Joint attention needs text tokens as wide as the model.
    """
    router = _get(tree, "moe", "router")
    if router in ROUTERS_WITHOUT_PREDICTOR and _get(tree, "moe", "num_experts") != 0:
        is_changed = _get(words, "moe", "router") is not None
        _choose(tree, words, "sampling", "selection", "static", is_forced=is_changed)
        _choose(tree, words, "moe", "pool", "rank", is_forced=is_changed)
    if _get(tree, "diffusion", "kind") == "ddpm":
        is_changed = _get(words, "diffusion", "kind") is not None
        for key, value in (("prediction", "velocity"), ("loss", "velocity"), ("time_sampling", "uniform")):
            _choose(tree, words, "diffusion", key, value, is_forced=is_changed)
    if _get(tree, "model", "attention") == "joint":
        is_changed = _get(words, "model", "attention") is not None
        _choose(tree, words, "model", "text_projection", True, is_forced=is_changed)


def describe_choices(config: Config) -> list[str]:
    """A sentence for each setting that is another than by default because of the router or the process."""
    lines = []
    if config.moe.num_experts and config.moe.router in ROUTERS_WITHOUT_PREDICTOR:
        lines.append(
            f"sampling.selection={config.sampling.selection}, moe.pool={config.moe.pool}: "
            f"moe.router {config.moe.router} has no capacity predictor"
        )
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
