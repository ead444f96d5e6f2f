"""facebookresearch/DiT and SiT: their published tensors, one to one, and their time."""

from pathlib import Path

import pytest
import torch

from diffmoe_scale.checkpoint.stored import open_weights
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.convert.dit import dit_rules, read_shapes
from diffmoe_scale.convert.dit_config import make_dit_config
from diffmoe_scale.convert.reference import to_ours
from diffmoe_scale.convert.time import keep_velocity, reflect_time, restore_velocity
from diffmoe_scale.convert.verify import build_meta
from diffmoe_scale.nn.embeddings import position_embedding, sinusoidal_embedding
from tests.convert.reference import drawn_state, namespace, training_file

WIDTH, DEPTH = 1152, 28
XL_BLOCK = {
    "attn.qkv.weight": (3456, 1152),
    "attn.qkv.bias": (3456,),
    "attn.proj.weight": (1152, 1152),
    "attn.proj.bias": (1152,),
    "mlp.fc1.weight": (4608, 1152),
    "mlp.fc1.bias": (4608,),
    "mlp.fc2.weight": (1152, 4608),
    "mlp.fc2.bias": (1152,),
    "adaLN_modulation.1.weight": (6912, 1152),
    "adaLN_modulation.1.bias": (6912,),
}
XL = {
    "pos_embed": (1, 256, 1152),
    "x_embedder.proj.weight": (1152, 4, 2, 2),
    "x_embedder.proj.bias": (1152,),
    "t_embedder.mlp.0.weight": (1152, 256),
    "t_embedder.mlp.0.bias": (1152,),
    "t_embedder.mlp.2.weight": (1152, 1152),
    "t_embedder.mlp.2.bias": (1152,),
    "y_embedder.embedding_table.weight": (1001, 1152),
    "final_layer.linear.weight": (32, 1152),
    "final_layer.linear.bias": (32,),
    "final_layer.adaLN_modulation.1.weight": (2304, 1152),
    "final_layer.adaLN_modulation.1.bias": (2304,),
} | {f"blocks.{block}.{name}": shape for block in range(DEPTH) for name, shape in XL_BLOCK.items()}
"""DiT-XL/2 and SiT-XL/2 for pictures of 256 x 256."""


def positions() -> torch.Tensor:
    return position_embedding(16, 16, WIDTH)[None]


def absent() -> torch.Tensor:
    raise AssertionError("a tensor was read")


XL_STATE = {
    name: LazyTensor.of(positions()) if name == "pos_embed" else LazyTensor(shape, torch.float32, absent)
    for name, shape in XL.items()
}


@pytest.mark.parametrize("kind", ["ddpm", "flow"])
def test_the_tensors_of_xl_2_are_those_of_ours_one_to_one(kind: str) -> None:
    assert sum(torch.Size(shape).numel() for shape in XL.values()) == 675_129_632 + 256 * 1152 - 294_912
    shapes = read_shapes(XL_STATE)
    config = make_dit_config(shapes, [f"diffusion.kind={kind}"], {})
    assert (config.model.heads, config.model.image_size, config.model.num_classes) == (16, 256, 1000)
    weights, buffers = to_ours(XL_STATE, shapes, is_flow=kind == "flow")
    expected = {
        name: tuple(parameter.shape)
        for name, parameter in build_meta(config, {}).canonical_parameters().items()
    }
    assert {name: tensor.shape for name, tensor in weights.items()} == expected and not buffers
    rules = dit_rules(shapes, is_flow=kind == "flow")
    theirs = [name for rule in rules for name in rule.theirs]
    assert len(theirs) == len(set(theirs)) == len(rules) and {*theirs, "pos_embed"} == XL.keys()


def test_a_reflected_weight_sees_one_minus_t() -> None:
    weight_DF = torch.randn(7, 256, dtype=torch.float64)
    time_B = torch.rand(50)
    theirs = sinusoidal_embedding(1 - time_B, 256).double() @ weight_DF.t()
    ours = sinusoidal_embedding(time_B, 256).double() @ reflect_time(weight_DF).t()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    torch.testing.assert_close(reflect_time(reflect_time(weight_DF)), weight_DF, rtol=0, atol=1e-12)


def test_the_velocity_rows_of_each_place_change_sign() -> None:
    rows = torch.arange(16.0)  # two places of 8 outputs
    kept = keep_velocity(rows, outputs=8, channels=4)
    assert kept.tolist() == [-0.0, -1, -2, -3, -8, -9, -10, -11]
    back = restore_velocity(kept, outputs=8, channels=4)
    assert back.tolist() == [0, 1, 2, 3, 0, 0, 0, 0, 8, 9, 10, 11, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [({"model": "DiT-XL/2"}, "ddpm"), ({"model": "SiT-XL/2", "path_type": "Linear"}, "flow")],
)
def test_the_arguments_of_a_training_tell_dit_from_sit(
    tmp_path: Path, arguments: dict[str, str], kind: str
) -> None:
    path = training_file(tmp_path / "a.pt", drawn_state(), arguments=namespace(**arguments))
    convert(path, tmp_path / "a.safetensors", Options(settings=["model.heads=4"]))
    assert open_weights(tmp_path / "a.safetensors").config.diffusion.kind == kind


def test_without_arguments_the_kind_must_be_given(tmp_path: Path) -> None:
    torch.save(drawn_state(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"give diffusion.kind=ddpm for DiT, diffusion.kind=flow for SiT"):
        convert(tmp_path / "a.pt", tmp_path / "b", Options(settings=["model.heads=4"]))
    with pytest.raises(ValueError, match=r"give model.heads=N"):
        convert(tmp_path / "a.pt", tmp_path / "b", Options(settings=["diffusion.kind=ddpm"]))
