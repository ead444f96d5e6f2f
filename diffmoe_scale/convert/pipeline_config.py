"""The JSON files of a diffusers folder: what each component is built of, from the settings of a run."""

from collections.abc import Mapping
from typing import Any  # JSON

from diffmoe_scale.checkpoint.stored import StoredWeights
from diffmoe_scale.config.identity import identity_fields
from diffmoe_scale.config.load import config_tree
from diffmoe_scale.config.schema import Config
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.encoders.text.tokenizer import END, PAD
from diffmoe_scale.moe.predictor import predictor_hidden_width
from diffmoe_scale.plan.assumed import latents_of, streams_of

TRANSFORMER, TEXT_ENCODER = "DiffMoETransformer2DModel", "DiffMoETextEncoder"
TOKENIZER, PIPELINE = "DiffMoETokenizer", "DiffMoEPipeline"
LIMITS = {"diffmoe": "predictor", "expert_race": "limit", "expert_threshold": "limit"}
"""Where routers hold their thresholds."""
BIASES = "feed_forward.router.balance.bias_E"
MOST_ENCODERS = 4
HELD = {
    "autoencoder": {"kind"},
    "text": {"kind", "encoders", "max_tokens", "width", "depth", "heads", "open_clip_name"},
    "model": {
        *("conditioning", "num_classes", "image_size", "channels", "patch_size", "depth", "width", "heads"),
        *("attention", "qk_norm", "positions", "modulation", "feed_forward_ratio", "text_projection"),
        *("size_conditioning", "time_frequencies", "position_size"),
    },
    "moe": {
        *("num_experts", "every", "first_dense", "router", "gate", "router_input", "shared_experts"),
        *("routed_scale", "expert_width_ratio", "activation", "predictor_width"),
    },
    "diffusion": {"kind", "prediction", "time_scale"},
}
"""Settings of a model's identity that the code of a folder has. Of any other the default alone fits."""
Tree = dict[str, Any]


def has_trained_encoder(config: Config) -> bool:
    """Whether a text encoder was trained along."""
    return config.model.conditioning == "text" and config.text.trained is not None


def refuse_unfit(config: Config) -> None:
    """Raises: ValueError naming the part of a model that a folder cannot hold."""
    tree, plain = config_tree(config), config_tree(Config())
    for section, keys in identity_fields().items():
        for key in keys:
            value, default = tree[section][key], plain[section][key]
            if key not in HELD.get(section, ()) and value != default:
                raise ValueError(
                    f"{section}.{key} is {value!r}, for which a diffusers folder has no code; expected "
                    f"{default!r}"
                )
    encoders = config.text.listed() if config.model.conditioning == "text" else ()
    if len(encoders) > MOST_ENCODERS:
        raise ValueError(
            f"text.encoders has {len(encoders)} encoders; a diffusers folder holds at most {MOST_ENCODERS} "
            "(text_encoder to text_encoder_4)"
        )


def transformer_tree(stored: StoredWeights, *, layout: str) -> Tree:
    """What the transformer is built of. `layout` of the experts is `stacked` or `separate`."""
    config = stored.config
    model, diffusion = config.model, config.diffusion
    channels, factor = latents_of(config.autoencoder, channels=model.channels)
    outputs = output_channels(config)
    is_text = model.conditioning == "text"
    # Folders that were written before the setting have no such key.
    places = {"position_size": model.position_size} if model.position_size else {}
    return {
        **places,
        "in_channels": channels,
        "out_channels": outputs,
        "sample_size": model.image_size // factor,
        "patch_size": model.patch_size,
        "depth": model.depth,
        "width": model.width,
        "heads": model.heads,
        "hidden_width": round(model.feed_forward_ratio * model.width),
        "image_size": model.image_size,
        "attention": model.attention,
        "qk_norm": model.qk_norm,
        "positions": model.positions,
        "modulation": model.modulation,
        "time_frequencies": model.time_frequencies,
        "is_gated": config.moe.activation == "swiglu",
        "num_classes": model.num_classes,
        "size_conditioning": model.size_conditioning,
        "text_streams": [[one.token, one.pooled] for one in streams_of(config.text)] if is_text else [],
        "text_projection": model.text_projection,
        "experts": _experts(stored, layout=layout) if config.moe.num_experts else None,
        "diffusion": {
            "kind": diffusion.kind,
            "prediction": diffusion.prediction,
            "time_scale": diffusion.time_scale,
            "min_time": diffusion.min_time,
        },
    }


def output_channels(config: Config) -> int:
    """Of the network."""
    channels, _ = latents_of(config.autoencoder, channels=config.model.channels)
    return build_objective(config.diffusion).output_channels(channels)


def threshold_names(router: str) -> tuple[str, str]:
    """Of a block's thresholds: their moving averages, and how often these were moved."""
    start = f"feed_forward.router.{LIMITS[router]}."
    return f"{start}expert_threshold_E", f"{start}threshold_steps"


def _experts(stored: StoredWeights, *, layout: str) -> Tree:
    model, moe, blocks = stored.config.model, stored.config.moe, stored.config.expert_blocks
    expert_width = round(moe.expert_width_ratio * model.width)
    predictor_width = predictor_hidden_width(model.width, moe.predictor_width) if moe.has_predictor else 0
    buffers = stored.family("buffer")
    starts = [f"transformer.blocks.{block}." for block in blocks]
    averages, updates = threshold_names(moe.router) if moe.has_thresholds else ("", "")
    names = starts if moe.has_thresholds else []
    tree = {
        "num_experts": moe.num_experts,
        "blocks": blocks,
        "width": expert_width,
        "shared_width": moe.shared_experts * expert_width,
        "layout": layout,
        "router": moe.router,
        "gate": moe.gate,
        "router_input": moe.router_input,
        "pool": moe.pool,
        "capacity": moe.capacity,
        "capacity_by_resolution": [list(pair) for pair in moe.capacity_by_resolution],
        "top_k": moe.top_k,
        "threshold_decay": moe.threshold_decay,
        "threshold_bias_correction": moe.threshold_bias_correction,
        "predictor_width": predictor_width,
        "thresholds": [buffers[f"{name}{averages}"].read().tolist() for name in names],
        "threshold_steps": [int(buffers[f"{name}{updates}"].read()) for name in names],
    }
    # Keys of one router: folders that were written before it have none.
    if moe.router == "dsmoe":
        biases = [buffers[f"{start}{BIASES}"].read().tolist() for start in starts]
        tree |= {"routed_scale": moe.routed_scale, "biases": biases}
    if moe.router == "expert_race":
        tree["target_width"] = model.patch_size**2 * output_channels(stored.config)
    return tree


def sampling_tree(config: Config) -> Tree:
    """What a call of the pipeline leaves out: the sampling of the run."""
    sampling = config.sampling
    is_ddim = sampling.sampler == "ddim"
    return {
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "guidance_start": sampling.guidance_start,
        "guidance_end": sampling.guidance_end,
        "guidance_rescale": sampling.guidance_rescale,
        "guidance_channels": sampling.guidance_channels,
        "fresh_noise": 0.0 if is_ddim else sampling.fresh_noise,
        "eta": sampling.fresh_noise if is_ddim else 0.0,
        "spacing": "whole" if is_ddim else "even",
        "shift": sampling.shift,
        "shift_factor": sampling.shift_factor,
        "selection": sampling.selection,
        "gamma": sampling.gamma,
    }


def scheduler_tree(config: Config) -> tuple[str, Tree]:
    """Class and settings of the scheduler: Euler's for a flow, DDIM for ddpm."""
    if config.diffusion.kind == "flow":
        return "FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 1.0}
    return "DDIMScheduler", {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }


def describe_sampling(config: Config) -> list[str]:
    """What the folder's sampling does otherwise than the run's, a sentence each."""
    sampler, is_flow = config.sampling.sampler, config.diffusion.kind == "flow"
    if sampler in (("euler",) if is_flow else ("euler", "ddim")):
        return []
    name, _ = scheduler_tree(config)
    return [f"the folder samples with {name}: it has no sampling.sampler {sampler!r}"]


def text_encoder_tree(config: Config, *, vocabulary: int) -> Tree:
    """What the encoder that was trained along is built of."""
    trained = config.text.trained
    assert trained is not None
    text = config.text
    return {
        "vocabulary": vocabulary,
        "max_tokens": trained.max_tokens,
        "width": text.width,
        "depth": text.depth,
        "heads": text.heads,
    }


def pieces_tree(max_tokens: int) -> Tree:
    """How the tokenizer of the encoder that was trained along is called."""
    tree = {"max_tokens": max_tokens, "start": [], "end": [END], "pad": PAD, "empty": END}
    return tree | {"keeps_spaces": False}


def model_file(name: str, tree: Mapping[str, Any], *, module: str, version: str) -> Tree:
    """config.json of a model that is loaded by code of the folder; AutoModel reads `auto_map`."""
    return {
        "_class_name": name,
        "_diffusers_version": version,
        "auto_map": {"AutoModel": f"{module}.{name}"},
        **tree,
    }
