import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from diffmoe_scale.config.text import TextConfig, TextEncoderConfig
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from tests.encoders.text.language_models import KINDS, write_model
from tests.encoders.text.texts import CAPTIONS, TOWER, load_encoder, trained_encoder


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "tokenizer.model"
    train_tokenizer(CAPTIONS, vocabulary=512, path=path)
    return path


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return open_clip.CLIP(**TOWER).eval()


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory, tower):
    folder = tmp_path_factory.mktemp("tower")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TOWER, "preprocess_cfg": {}}), encoding="utf-8"
    )
    save_file(tower.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "tiny-tower.json").write_text(json.dumps(TOWER), encoding="utf-8")
    open_clip.add_model_config(folder / "tiny-tower.json")
    return folder


@pytest.fixture(scope="module")
def open_clip_encoder(tower_folder):
    config = TextConfig(kind="open_clip", open_clip_weights=f"local-dir:{tower_folder}", max_tokens=12)
    return load_encoder(config)


@pytest.fixture(scope="module")
def encoder(tokenizer_path):
    return trained_encoder(TextConfig(width=32, depth=2, heads=4, max_tokens=24), tokenizer_path)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_model(kind, folder / kind) for kind in KINDS}


def pretrained(folder):
    entry = TextEncoderConfig(kind="transformers", path=str(folder), max_tokens=16, precision="fp32")
    return load_encoder(TextConfig(encoders=(entry,)))


@pytest.fixture(scope="module")
def t5_encoder(model_folders):
    return pretrained(model_folders["t5"])


@pytest.fixture(scope="module")
def qwen_encoder(model_folders):
    return pretrained(model_folders["qwen3"])


@pytest.fixture(scope="module")
def gemma_encoder(model_folders):
    return pretrained(model_folders["gemma2"])


@pytest.fixture(params=["encoder", "open_clip_encoder", "t5_encoder", "qwen_encoder", "gemma_encoder"])
def any_encoder(request):
    return request.getfixturevalue(request.param)
