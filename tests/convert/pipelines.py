"""Models of every kind with drawn weights, as they would be opened from a checkpoint."""

from collections.abc import Sequence
from pathlib import Path

import torch

from diffmoe_scale.checkpoint.stored import StoredWeights
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.pipeline import plan_folder, write_folder
from diffmoe_scale.convert.verify import VOCABULARY, build_meta
from diffmoe_scale.encoders.text.tokenizer import open_pieces, train_tokenizer
from diffmoe_scale.nn.generator import named_generator
from tests.train.runs import tiny_config

TEXT = [
    "model.conditioning=text",
    "model.num_classes=0",
    "text.vocabulary=300",
    "text.max_tokens=8",
    "text.width=32",
    "text.depth=1",
]
JOINT = [*TEXT, "model.attention=joint"]
VARIANTS: dict[str, list[str]] = {
    "classes": [],
    "dense": ["moe.num_experts=0"],
    "expert choice": ["moe.router=expert_choice"],
    "token choice": ["moe.router=token_choice", "moe.top_k=2"],
    "dsmoe": ["moe.router=dsmoe", "moe.top_k=2"],
    "expert race": ["moe.router=expert_race"],
    "expert race, softmax, of a sample": [
        "moe.router=expert_race",
        "moe.gate=softmax",
        "moe.pool=sample",
        "sampling.selection=static",
    ],
    "expert race, sigmoid": ["moe.router=expert_race", "moe.gate=sigmoid", "sampling.selection=interval"],
    "expert threshold": ["moe.router=expert_threshold"],
    "expert threshold by gamma": ["moe.router=expert_threshold", "sampling.selection=interval"],
    "expert threshold, top K": ["moe.router=expert_threshold", "sampling.selection=static"],
    "promoe": ["moe.router=promoe", "moe.top_k=2"],
    "promoe of captions": [*TEXT, "moe.router=promoe"],
    "swiglu": ["moe.activation=swiglu"],
    "shared experts": ["moe.shared_experts=2"],
    "widths": ["moe.expert_width_ratio=0.5", "model.feed_forward_ratio=1.5"],
    "predictor width": ["moe.predictor_width=0.25"],
    "places": ["model.depth=4", "moe.every=1", "moe.first_dense=2"],
    "sigmoid": ["moe.gate=sigmoid"],
    "identity": ["moe.gate=identity"],
    "decoupled": ["moe.router_input=decoupled"],
    "pool of a sample": ["moe.pool=sample", "sampling.selection=static"],
    "capacities": [
        "buckets.enabled=true",
        "buckets.step=8",
        "buckets.resolutions=[[1,8],[10,16]]",
        "moe.capacity_by_resolution=[[8,2.0]]",
        "sampling.selection=static",
    ],
    "uncorrected thresholds": ["moe.threshold_bias_correction=false"],
    "rope": ["model.positions=rope2d"],
    "qk norm": ["model.qk_norm=rms"],
    "shared modulation": ["model.modulation=shared"],
    "sizes": ["model.size_conditioning=true"],
    "frequencies": ["model.time_frequencies=diffusers", "diffusion.time_scale=1.0"],
    "ddpm": ["diffusion.kind=ddpm"],
    "predicted sample": ["diffusion.prediction=sample", "diffusion.loss=sample"],
    "text": TEXT,
    "projected text": [*TEXT, "model.text_projection=true"],
    "joint": JOINT,
    "all of joint": [
        *JOINT,
        "model.positions=rope2d",
        "model.qk_norm=rms",
        "model.modulation=shared",
        "model.size_conditioning=true",
        "moe.activation=swiglu",
        "moe.shared_experts=1",
        "moe.router_input=decoupled",
        "diffusion.prediction=sample",
    ],
}


def make_tokenizer(folder: Path) -> Path:
    path = folder / "tokenizer.model"
    train_tokenizer(["a red circle", "two blue squares", "café"], vocabulary=300, path=path)
    return path


def draw_weights(
    settings: Sequence[str], tokenizer: Path, *, families: Sequence[str] = ("ema",)
) -> StoredWeights:
    """Every element has a value of its own; thresholds are such that experts take some tokens."""
    config = tiny_config(settings)
    is_text = config.model.conditioning == "text" and config.text.trained is not None
    pieces = open_pieces(tokenizer).vocab_size() if is_text else 0
    vocabulary = {VOCABULARY: LazyTensor((pieces, 1), torch.float32, lambda: torch.empty(0))}
    denoiser = build_meta(config, vocabulary if is_text else {})
    tensors = {
        f"{family}/{name}": LazyTensor.of(
            0.2 * torch.randn(parameter.shape, generator=named_generator(0, family, name))
        )
        for family in families
        for name, parameter in denoiser.canonical_parameters().items()
    }
    for name, buffer in denoiser.canonical_buffers().items():
        is_count = buffer.dtype == torch.int64
        values = torch.tensor(30) if is_count else torch.linspace(0.3, 0.45, len(buffer))
        tensors[f"buffer/{name}"] = LazyTensor.of(values)
    return StoredWeights(
        path=Path("drawn"),
        tensors=dict(sorted(tensors.items())),
        config=config,
        settings=model_settings(config, tokenizer=tokenizer if is_text else Path("none"), frozen={}),
        step=7,
        tokenizer=tokenizer.read_bytes() if is_text else b"",
    )


def write_pipeline(
    stored: StoredWeights, path: Path, *, layout: str = "stacked", shard_gib: float = 0.0, links: bool = False
) -> Config:
    write_folder(plan_folder(stored, layout=layout), path, shard_gib=shard_gib, links=links)
    return stored.config
