import json
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.networks import Networks, build_networks
from tests.data.samples import color, encode, write_shards
from tests.encoders.autoencoder.models import tiny_model
from tests.encoders.text.texts import TOWER
from tests.moe.layers import alone
from tests.prepare.folders import add_picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three captioned images."""
    folder = tmp_path / "images"
    for number, name in enumerate(("a.png", "deep/er/b.jpg", "deep/c.d.webp")):
        add_picture(folder, name, caption=f"caption {number}", color=(50 * number, 0, 0))
    return folder


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `kl` and `clip` of a tiny random autoencoder and text tower."""
    folder = tmp_path_factory.mktemp("encoders")
    tiny_model(scaling_factor=1.5, shift_factor=0.25).save_pretrained(folder / "kl")
    torch.manual_seed(0)
    tower = open_clip.CLIP(**TOWER)
    (folder / "clip").mkdir()
    (folder / "clip" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TOWER, "preprocess_cfg": {}})
    )
    save_file(tower.state_dict(), folder / "clip" / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def settings(encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("raw")
    several = {
        "png": encode(Image.linear_gradient("L")),
        "json": b'{"caption": ["a red circle", "two long words and three more"]}',
    }
    broken = {"png": b"no picture", "txt": b"x"}
    uncaptioned = {"png": encode(Image.radial_gradient("L"))}
    shapes = {
        key: {
            "png": encode(Image.new("RGB", size, color(*map(int, key.split("_"))))),
            "txt": f"a shape {key}".encode(),
        }
        for key, size in {
            "0_1": (8, 4),
            "0_3": (30, 70),
            "1_0": (4, 8),
            "1_3": (70, 31),
            "1_5": (90, 50),
        }.items()
    }
    write_shards(
        folder,
        [5, 7, 3],
        replaced=shapes | {"0_2": several, "1_1": several, "1_4": uncaptioned, "2_1": broken},
    )
    return [
        "autoencoder.kind=kl",
        f"autoencoder.path={encoders / 'kl'}",
        "text.kind=open_clip",
        f"text.open_clip_weights=local-dir:{encoders / 'clip'}",
        "text.max_tokens=12",
        "model.image_size=16",
        "model.channels=16",
        "model.patch_size=2",
        "model.depth=2",
        "model.width=32",
        "model.heads=2",
        "moe.num_experts=4",
        f"data.train=[{folder}/shard-*.tar]",
    ]


@pytest.fixture(scope="session")
def pipeline(settings: list[str]) -> Networks:
    return pipeline_of(load_config(None, settings))


def pipeline_of(config: Config) -> Networks:
    pipeline = build_networks(config, tokenizer_path=Path(), groups=alone(), device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pipeline.denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return pipeline


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "29500"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
