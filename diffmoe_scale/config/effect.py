"""Settings that are not the default and that, beside the others, change nothing: said, not refused, because a
file may serve for several models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from diffmoe_scale.config.routers import BY_TOKEN
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.section import show

ROUTED = ("num_experts", "activation")
"""Of `moe`, what a dense model has, too."""


@dataclass(frozen=True)
class Rule:
    """`names` of a section (all but `others` where it is empty) have no effect where `is_idle` holds, and
    why."""

    section: str
    names: tuple[str, ...]
    is_idle: Callable[[Config], bool]
    why: str
    others: tuple[str, ...] = ()


RULES = (
    Rule("moe", (), lambda c: c.moe.num_experts == 0, "moe.num_experts is 0", others=ROUTED),
    Rule(
        "moe",
        ("predictor_weight", "predictor_tokens"),
        lambda c: c.moe.router != "diffmoe",
        "moe.router is not diffmoe",
    ),
    Rule(
        "moe",
        ("threshold_decay", "threshold_bias_correction"),
        lambda c: not c.moe.has_thresholds,
        "moe.router has no thresholds",
    ),
    Rule("moe", ("top_k",), lambda c: c.moe.router not in BY_TOKEN, "experts choose, not tokens"),
    Rule(
        "moe",
        ("balance_weight",),
        lambda c: c.moe.router != "token_choice",
        "moe.router is not token_choice",
    ),
    Rule(
        "moe",
        ("bias_update_rate", "routed_scale"),
        lambda c: c.moe.router != "dsmoe",
        "moe.router is not dsmoe",
    ),
    Rule(
        "moe",
        ("similarity_weight", "target_weight"),
        lambda c: c.moe.router != "expert_race",
        "moe.router is not expert_race",
    ),
    Rule(
        "moe",
        ("threshold_warmup_steps",),
        lambda c: c.moe.router != "expert_threshold",
        "moe.router is not expert_threshold",
    ),
    Rule("moe", ("router_init_std",), lambda c: c.moe.router == "promoe", "cosines have no size"),
    Rule("moe", ("contrastive_weight",), lambda c: c.moe.router != "promoe", "moe.router is not promoe"),
    Rule("moe", ("capacity",), lambda c: c.moe.router in BY_TOKEN, "tokens choose moe.top_k experts"),
    Rule(
        "alignment", (), lambda c: not c.alignment.encoder, "alignment.encoder is empty", others=("encoder",)
    ),
    Rule("text", (), lambda c: c.model.conditioning == "class", "model.conditioning is class"),
    Rule(
        "text",
        ("vocabulary", "width", "depth", "heads"),
        lambda c: c.text.trained is None,
        "no text encoder is trained along",
    ),
    Rule(
        "diffusion",
        ("logit_mean", "logit_std"),
        lambda c: c.diffusion.time_sampling != "logit_normal",
        "diffusion.time_sampling is not logit_normal",
    ),
    Rule("diffusion", ("time_scale",), lambda c: c.diffusion.kind == "ddpm", "diffusion.kind is ddpm"),
    Rule(
        "diffusion",
        ("min_time",),
        lambda c: c.diffusion.prediction != "sample",
        "diffusion.prediction is not sample",
    ),
    Rule(
        "buckets",
        ("aspects", "step", "constant_tokens"),
        lambda c: not c.buckets.enabled,
        "buckets.enabled is false",
    ),
    Rule(
        "data",
        ("cache_gib", "fetch_attempts", "stall_timeout_s"),
        lambda c: not c.data.cache_folder,
        "data.cache_folder is not set",
    ),
    Rule("data", ("prefetch",), lambda c: c.data.workers == 0, "data.workers is 0"),
    Rule(
        "data",
        ("caption_weights",),
        lambda c: c.model.conditioning == "class",
        "model.conditioning is class",
    ),
    Rule(
        "sampling",
        ("tolerance",),
        lambda c: c.sampling.sampler != "dopri5",
        "sampling.sampler is not dopri5",
    ),
    Rule(
        "sampling",
        ("gamma",),
        lambda c: c.sampling.selection != "interval",
        "sampling.selection is not interval",
    ),
    Rule(
        "sampling",
        ("calibration", "calibration_images", "calibration_prompts"),
        lambda c: c.sampling.capacity == 0,
        "sampling.capacity is 0",
    ),
    Rule(
        "sampling",
        ("guidance_start", "guidance_end", "guidance_rescale", "guidance_channels"),
        lambda c: c.sampling.guidance == 1,
        "sampling.guidance is 1",
    ),
    Rule(
        "telemetry",
        ("validation_samples", "validation_time_samples"),
        lambda c: c.telemetry.validate_every == 0,
        "telemetry.validate_every is 0",
    ),
    Rule(
        "telemetry",
        ("sample_prompts",),
        lambda c: c.telemetry.sample_every == 0,
        "telemetry.sample_every is 0",
    ),
    Rule(
        "telemetry",
        ("metrics_samples",),
        lambda c: c.telemetry.metrics_every == 0,
        "telemetry.metrics_every is 0",
    ),
    Rule(
        "telemetry",
        ("wandb_project",),
        lambda c: c.telemetry.wandb == "disabled",
        "telemetry.wandb is disabled",
    ),
)


def names_of(rule: Rule, config: Config) -> Sequence[str]:
    """The settings that a rule is about."""
    section = getattr(config, rule.section)
    return rule.names or [field.name for field in fields(section) if field.name not in rule.others]


def describe_idle(config: Config) -> list[str]:
    """A sentence for each reason why settings that are not the default have no effect."""
    defaults, said, lines = Config(), set[str](), []
    for rule in (rule for rule in RULES if rule.is_idle(config)):
        section, default = getattr(config, rule.section), getattr(defaults, rule.section)
        changed = [
            f"{rule.section}.{name}={show(getattr(section, name))}"
            for name in names_of(rule, config)
            if getattr(section, name) != getattr(default, name) and f"{rule.section}.{name}" not in said
        ]
        said |= {entry.partition("=")[0] for entry in changed}
        if changed:
            lines.append(f"without effect, since {rule.why}: {', '.join(changed)}")
    return lines
