import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from diffmoe_scale.config.encoders import TextConfig
from diffmoe_scale.encoders.text.build import build_text_encoder
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from tests.encoders.text.texts import CAPTIONS, TOWER, trained_encoder


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
    return build_text_encoder(config, tokenizer_path=tower_folder / "unused")


@pytest.fixture(scope="module")
def encoder(tokenizer_path):
    return trained_encoder(TextConfig(width=32, depth=2, heads=4, max_tokens=24), tokenizer_path)


@pytest.fixture(params=["encoder", "open_clip_encoder"])
def any_encoder(request):
    return request.getfixturevalue(request.param)
