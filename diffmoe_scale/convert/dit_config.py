"""The settings of a model of ours that is one of the DiT family, and which of ours are one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any  # trees of settings

from diffmoe_scale.config.identity import identity_fields
from diffmoe_scale.config.load import config_tree, make_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.dit import Shapes
from diffmoe_scale.plan.assumed import latents_of

HEADS = {(12, 384): 6, (12, 768): 12, (24, 1024): 16, (28, 1152): 16}
"""Of DiT-S, -B, -L and -XL, by depth and width."""
AUTOENCODER, FACTOR = "sd-vae-ft-ema", 8
"""The autoencoder of DiT, SiT and the reference; a name only: give autoencoder.path."""
ROUTERS = ("diffmoe", "expert_choice", "token_choice")
GUIDED = 3
"""Channels that `forward_with_cfg` of DiT, SiT and the reference guides."""
ANY = {
    "model": {
        *("conditioning", "num_classes", "image_size", "channels", "patch_size", "depth", "width", "heads"),
        *("feed_forward_ratio", "text_projection"),
    },
    "moe": {
        *("num_experts", "every", "router", "shared_experts", "expert_width_ratio", "activation"),
        "first_dense",
    },
    "diffusion": {"kind", "time_scale"},
}
"""Settings of a model's identity that the family's names can hold, or that are checked by themselves. Of all
others the default alone fits."""


def make_dit_config(shapes: Shapes, settings: Sequence[str], arguments: Mapping[str, Any]) -> Config:
    """The settings that shapes, the arguments of a training and `key.sub=value` words say.

    Raises: ValueError naming a setting that none of them says.
    """
    tree = _tree(shapes)
    given = {word.partition("=")[0] for word in settings}
    if "model.heads" not in given:
        tree["model"]["heads"] = _heads(shapes, arguments)
    if "diffusion.kind" not in given:
        tree["diffusion"]["kind"] = _kind(shapes, arguments)
    if not shapes.grid and "model.image_size" not in given:
        raise ValueError(
            "no tensor says the size of pictures (pos_embed is missing): give model.image_size=N"
        )
    config = make_config(tree, settings)
    if config.autoencoder.path != AUTOENCODER and "model.image_size" not in given:
        _, factor = latents_of(config.autoencoder, channels=shapes.channels)
        tree["model"]["image_size"] = shapes.grid * shapes.patch * factor
        config = make_config(tree, settings)
    if config.diffusion.kind == "flow" and not any("time_scale" in word for word in given):
        config = make_config(tree, [*settings, "diffusion.time_scale=1.0"])
    return config


def _tree(shapes: Shapes) -> dict[str, Any]:
    moe: dict[str, Any] = {"num_experts": 0, "activation": "swiglu" if shapes.is_gated else "gelu"}
    if shapes.num_experts:
        every, first_dense = _places(shapes)
        moe |= {
            "num_experts": shapes.num_experts,
            "every": every,
            "first_dense": first_dense,
            "router": shapes.router,
            "expert_width_ratio": shapes.expert_width / shapes.width,
            "shared_experts": _shared(shapes),
            # The reference's thresholds are used as they are.
            "threshold_bias_correction": False,
        }
    sampling: dict[str, Any] = {}
    if shapes.channels > GUIDED:
        sampling["guidance_channels"] = GUIDED
    if shapes.router == "diffmoe" and shapes.num_experts:
        sampling["selection"] = "threshold_count"
    is_pixels = shapes.channels == 3
    model = {
        "conditioning": "class",
        "num_classes": shapes.classes,
        "image_size": shapes.grid * shapes.patch * (1 if is_pixels else FACTOR),
        "channels": shapes.channels,
        "patch_size": shapes.patch,
        "depth": shapes.depth,
        "width": shapes.width,
    }
    if shapes.dense_width:
        model["feed_forward_ratio"] = shapes.dense_width / shapes.width
    autoencoder = {} if is_pixels else {"kind": "diffusers", "path": AUTOENCODER}
    return {"model": model, "moe": moe, "autoencoder": autoencoder, "diffusion": {}, "sampling": sampling}


def _places(shapes: Shapes) -> tuple[int, int]:
    """moe.every and moe.first_dense. Raises: ValueError if they cannot say it."""
    blocks = set(shapes.moe_blocks)
    for first in (0, *range(1, shapes.depth)):
        for every in range(1, (first or shapes.depth) + 1):
            regular = {b for b in range(first, shapes.depth) if b % every == every - 1}
            if regular == blocks:
                return every, first
    raise ValueError(
        f"experts are in blocks {sorted(blocks)}; expected every n-th (moe.every) after a first one"
        " (moe.first_dense)"
    )


def _shared(shapes: Shapes) -> int:
    if shapes.shared_width % shapes.expert_width:
        raise ValueError(
            f"its shared expert is {shapes.shared_width} wide; expected a multiple of the width of an expert "
            f"({shapes.expert_width})"
        )
    return shapes.shared_width // shapes.expert_width


def _heads(shapes: Shapes, arguments: Mapping[str, Any]) -> int:
    """Raises: ValueError: no tensor's shape says it, and the reference has models of one width with several
    numbers of heads."""
    known = HEADS.get((shapes.depth, shapes.width))
    is_named = re.fullmatch(r"(DiT|SiT)-(S|B|L|XL)/\d+", str(arguments.get("model", "")))
    if known is None or (shapes.num_experts and not is_named):
        hint = f", for example model.heads={known}" if known else ""
        raise ValueError(f"the number of attention heads is in no tensor: give model.heads=N{hint}")
    return known


def _kind(shapes: Shapes, arguments: Mapping[str, Any]) -> str:
    """`flow` of models with experts, for which it is the reference's default; of others what their arguments
    say. Raises: ValueError if they say nothing."""
    if shapes.outputs == shapes.channels:
        return "flow"  # ddpm has sigma
    if shapes.num_experts or "path_type" in arguments:
        return "flow"
    if re.fullmatch(r"DiT-.*", str(arguments.get("model", ""))):
        return "ddpm"
    raise ValueError(
        "DiT and SiT have the same tensors: give diffusion.kind=ddpm for DiT, diffusion.kind=flow for SiT "
        "and the dense models of the DiffMoE reference"
    )


def shapes_of_config(config: Config, *, outputs: int = 0) -> Shapes:
    """What a model of ours is in the family's terms; `outputs` where it is not 2 C.

    Raises: ValueError naming the settings of a model that is none of the family.
    """
    _refuse_other_models(config)
    model, moe = config.model, config.moe
    _, factor = latents_of(config.autoencoder, channels=model.channels)
    blocks = tuple(config.expert_blocks)
    expert_width = round(moe.expert_width_ratio * model.width) if blocks else 0
    return Shapes(
        width=model.width,
        depth=model.depth,
        patch=model.patch_size,
        channels=model.channels,
        outputs=outputs or 2 * model.channels,
        classes=model.num_classes,
        grid=model.image_size // factor // model.patch_size,
        dense_width=round(model.feed_forward_ratio * model.width),
        is_gated=moe.activation == "swiglu",
        num_experts=moe.num_experts if blocks else 0,
        expert_width=expert_width,
        shared_width=moe.shared_experts * expert_width,
        moe_blocks=blocks,
        router=moe.router,
    )


def _refuse_other_models(config: Config) -> None:
    tree, plain = config_tree(config), config_tree(Config())
    wrong = [
        f"{section}.{key} is {tree[section][key]!r}, expected {plain[section][key]!r}"
        for section in ("model", "moe", "diffusion")
        for key in identity_fields()[section]
        if key not in ANY[section] and tree[section][key] != plain[section][key]
    ]
    if config.moe.num_experts and config.moe.router not in ROUTERS:
        wrong.append(f"moe.router is {config.moe.router!r}, expected one of {', '.join(ROUTERS)}")
    if config.model.conditioning != "class":
        wrong.append(f"model.conditioning is {config.model.conditioning!r}, expected 'class'")
    if config.diffusion.kind == "flow" and config.diffusion.time_scale != 1:
        wrong.append(f"diffusion.time_scale is {config.diffusion.time_scale!r}, expected 1.0")
    if wrong:
        raise ValueError(f"the names of DiT, SiT and DiffMoE cannot hold this model: {'; '.join(wrong)}")
