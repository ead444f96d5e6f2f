"""What representation alignment costs beside the network: memory of encoder and projector, and operations."""

from pathlib import Path

from diffmoe_scale.config.schema import Config
from diffmoe_scale.encoders.text.folder import CONFIG_FILE, open_folder
from diffmoe_scale.plan.build import tokens_per_picture

PROJECTOR_BYTES = 16
"""For each weight: fp32 weight, gradient and two moments, whole on every rank."""


def alignment_bytes(config: Config) -> int | None:
    """Of the projector on a GPU; 0 without alignment, None where the encoder's folder is not there."""
    if not config.alignment.encoder:
        return 0
    if not (Path(config.alignment.encoder) / CONFIG_FILE).is_file():
        return None
    return PROJECTOR_BYTES * _projector_weights(config, _settings(config)["hidden_size"])


def describe_alignment(config: Config) -> list[str]:
    """A line about its operations; none without alignment."""
    if not config.alignment.encoder:
        return []
    if not (Path(config.alignment.encoder) / CONFIG_FILE).is_file():
        return ["alignment: its encoder is not there: neither its memory nor its operations are counted"]
    encoder, projector = alignment_flops(config)
    end = config.alignment.end_step or config.run.steps
    return [
        f"alignment to step {end:,}: {encoder / 1e9:,.1f} GFLOP of the encoder (none where shards hold its "
        f"features) and {projector / 1e9:,.1f} GFLOP of the projector a picture, not in the times below"
    ]


def alignment_flops(config: Config) -> tuple[float, float]:
    """Operations of a training sample: of the encoder, forward, and of the projector, forward and backward.

    Raises: ValueError where the encoder's folder holds no model.
    """
    settings, tokens = _settings(config), tokens_per_picture(config)
    width, depth = int(settings["hidden_size"]), int(settings["num_hidden_layers"])
    hidden = int(settings.get("intermediate_size") or settings.get("mlp_ratio", 4) * width)
    # Queries, keys, values and output; the two layers of the MLP; scores and their products with values.
    layer = 2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * tokens**2 * width
    return float(depth * layer), 6.0 * tokens * _projector_weights(config, width)


def _settings(config: Config) -> dict[str, int]:
    return dict(open_folder(config.alignment.encoder, "alignment.encoder").settings)


def _projector_weights(config: Config, features: int) -> int:
    """Without biases."""
    hidden = config.alignment.projector_width
    return config.model.width * hidden + hidden**2 + hidden * features
