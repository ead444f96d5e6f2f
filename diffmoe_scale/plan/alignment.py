"""What representation alignment costs beside the network: memory of encoder and projector, and operations."""

from pathlib import Path
from typing import Any  # JSON values

from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.section import show
from diffmoe_scale.encoders.text.folder import CONFIG_FILE, open_folder
from diffmoe_scale.plan.build import tokens_per_picture

PROJECTOR_BYTES = 16
"""For each weight: fp32 weight, gradient and two moments, whole on every rank."""


def alignment_bytes(config: Config) -> int | None:
    """Of the projector on a GPU; 0 without alignment, None where the encoder's folder is not there. Raises:
    as `alignment_flops`."""
    if not config.alignment.encoder:
        return 0
    if not (Path(config.alignment.encoder) / CONFIG_FILE).is_file():
        return None
    width, _, _ = _sizes(config)
    return PROJECTOR_BYTES * _projector_weights(config, width)


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
    (width, depth, hidden), tokens = _sizes(config), tokens_per_picture(config)
    # Queries, keys, values and output; the two layers of the MLP; scores and their products with values.
    layer = 2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * tokens**2 * width
    return float(depth * layer), 6.0 * tokens * _projector_weights(config, width)


def _sizes(config: Config) -> tuple[int, int, int]:
    """Width, depth and width of the hidden layers of the encoder. Raises: ValueError."""
    folder = open_folder(config.alignment.encoder, "alignment.encoder")
    names = ("hidden_size", "num_hidden_layers")
    sizes: dict[str, Any] = {name: folder.settings.get(name) for name in names}
    name = "intermediate_size" if folder.settings.get("intermediate_size") else "mlp_ratio"
    sizes[name] = folder.settings.get(name, 4)
    for name, value in sizes.items():
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise folder.error(f"its {CONFIG_FILE} has {show(value)} for {name}; expected a whole number")
    width, depth, hidden = sizes.values()
    return width, depth, hidden * width if name == "mlp_ratio" else hidden


def _projector_weights(config: Config, features: int) -> int:
    """Without biases."""
    hidden = config.alignment.projector_width
    return config.model.width * hidden + hidden**2 + hidden * features
