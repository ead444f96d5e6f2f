"""Transformers of diffusers from their folders: DiTTransformer2DModel as one of the DiT family, and why
others do not fit.

diffusers gives every block of a DiT a copy of the timestep's and the class's embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON trees

import torch
from torch import Tensor

from diffmoe_scale.checkpoint.tensor_file import LazyTensor, read_shards, read_tensors
from diffmoe_scale.convert.dit import check_names, read_shapes
from diffmoe_scale.convert.dit_config import FACTOR, make_dit_config
from diffmoe_scale.convert.foreign import ForeignModel
from diffmoe_scale.convert.rules import Rule, joined, same
from diffmoe_scale.convert.torch_file import TorchFile
from diffmoe_scale.convert.verify import Question
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.json_text import parse_json

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
DIT, PIXART = "DiTTransformer2DModel", "PixArtTransformer2DModel"
FITTING: dict[str, Any] = {
    "norm_type": "ada_norm_zero",
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
}
"""What ours has; these are also diffusers' defaults."""
PIXART_PARTS = (
    "caption_projection (two layers with GELU between; ours has a norm and one layer), cross-attention "
    "(attn2) of tokens that are not normalized (ours normalizes them), and at the end scale_shift_table, "
    "which is added to the embedding of time (ours maps it by a layer)"
)
EMBEDDINGS = "norm1.emb."


@dataclass(frozen=True)
class DiffusersModel:
    """A model of a folder, as one of the DiT family; diffusers answers itself."""

    folder: Path
    model: ForeignModel

    @torch.no_grad()
    def answer(self, family: str, question: Question) -> Tensor:
        assert family == "ema"
        from diffusers import DiTTransformer2DModel

        network = DiTTransformer2DModel.from_pretrained(self.folder, use_safetensors=True)
        time_B = build_objective(self.model.config.diffusion).embedding_time(question.t_B).long()
        answer: Tensor = network.float().eval()(question.x_BCHW, time_B, question.labels_B).sample
        return answer


def diffusers_class(folder: Path) -> str:
    """The class that a folder's config.json names; "" without one. A pipeline's folder is that of its
    transformer."""
    return str(_read_config(_transformer(folder)).get("_class_name", ""))


def _transformer(folder: Path) -> Path:
    return folder / "transformer" if (folder / "transformer" / CONFIG).is_file() else folder


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        tree = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    return tree if isinstance(tree, dict) else {}


def read_diffusers(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of a folder. Raises: ValueError if its files are missing or damaged."""
    folder = _transformer(folder)
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        return read_shards(index)[1]
    if not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{folder} is not complete: it has no {WEIGHTS}; other files of weights are not read"
        )
    return read_tensors(folder / WEIGHTS)[1]


def open_diffusers(folder: Path, settings: Sequence[str]) -> DiffusersModel:
    """Raises: ValueError naming the part of the architecture that ours does not have."""
    name, folder = diffusers_class(folder), _transformer(folder)
    if name == PIXART:
        raise ValueError(f"{folder} is a {name}, which ours cannot be: it has {PIXART_PARTS}")
    if name != DIT:
        raise ValueError(f"{folder} is a {name}; expected {DIT}, the model of diffusers that ours can be")
    tree = FITTING | {"num_attention_heads": 16, "sample_size": 32} | _read_config(folder)
    if wrong := [
        f"{key} is {tree[key]!r}, expected {value!r}" for key, value in FITTING.items() if tree[key] != value
    ]:
        raise ValueError(f"{folder / CONFIG}: {'; '.join(wrong)}")
    given = {word.partition("=")[0] for word in settings}
    derived = {
        "model.heads": tree["num_attention_heads"],
        "model.image_size": int(tree["sample_size"]) * FACTOR,
        "model.time_frequencies": "diffusers",
        "diffusion.kind": "ddpm",
        "sampling.guidance_channels": 0,  # DiTPipeline guides all
    }
    words = [*settings, *(f"{key}={value}" for key, value in derived.items() if key not in given)]
    try:
        state = to_dit(read_diffusers(folder))
        shapes = read_shapes(state)
        config = make_dit_config(shapes, words, {})
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if config.diffusion.kind != "ddpm" or shapes.outputs != 2 * shapes.channels:
        raise ValueError(
            f"{folder}: diffusion.kind is {config.diffusion.kind!r} with {shapes.outputs} output channels; "
            f"expected 'ddpm' with {2 * shapes.channels} (noise and sigma)"
        )
    return DiffusersModel(folder, ForeignModel(folder, TorchFile({"ema": state}), shapes, config))


def to_dit(state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Under DiT's names.

    Raises: ValueError naming tensors that are missing or left over, or embeddings that differ between blocks.
    """
    depth = 1 + max(
        (int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks.")), default=-1
    )
    rules = [rule for block in range(depth) for rule in _block_rules(block)]
    rules += _linear("x_embedder.proj", "pos_embed.proj")
    rules += _linear("final_layer.adaLN_modulation.1", "proj_out_1")
    rules += _linear("final_layer.linear", "proj_out_2")
    copies = _embedding_rules(0)
    expected = {name for rule in rules for name in rule.theirs}
    expected |= {name for block in range(depth) for rule in _embedding_rules(block) for name in rule.theirs}
    check_names(state, expected)
    for block in range(1, depth):
        for first, copy in zip(copies, _embedding_rules(block), strict=True):
            if not torch.equal(state[first.theirs[0]].read(), state[copy.theirs[0]].read()):
                raise ValueError(
                    f"{copy.theirs[0]} differs from that of block 0; ours has one embedding for all blocks"
                )
    return {rule.ours: rule.forward([state[name] for name in rule.theirs]) for rule in rules + copies}


def _linear(dit: str, theirs: str) -> list[Rule]:
    return [same(f"{dit}.{kind}", f"{theirs}.{kind}") for kind in ("weight", "bias")]


def _embedding_rules(block: int) -> list[Rule]:
    start = f"transformer_blocks.{block}.{EMBEDDINGS}"
    return [
        *_linear("t_embedder.mlp.0", f"{start}timestep_embedder.linear_1"),
        *_linear("t_embedder.mlp.2", f"{start}timestep_embedder.linear_2"),
        same("y_embedder.embedding_table.weight", f"{start}class_embedder.embedding_table.weight"),
    ]


def _block_rules(block: int) -> list[Rule]:
    dit, theirs = f"blocks.{block}.", f"transformer_blocks.{block}."
    attention = [f"{theirs}attn1.to_{letter}" for letter in "qkv"]
    return [
        joined(f"{dit}attn.qkv.weight", *(f"{name}.weight" for name in attention)),
        joined(f"{dit}attn.qkv.bias", *(f"{name}.bias" for name in attention)),
        *_linear(f"{dit}attn.proj", f"{theirs}attn1.to_out.0"),
        *_linear(f"{dit}mlp.fc1", f"{theirs}ff.net.0.proj"),
        *_linear(f"{dit}mlp.fc2", f"{theirs}ff.net.2"),
        *_linear(f"{dit}adaLN_modulation.1", f"{theirs}norm1.linear"),
    ]
