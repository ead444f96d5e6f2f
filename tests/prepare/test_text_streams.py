"""Cached features of several text encoders beside one that is trained along, against encoding on the fly."""

from functools import partial
from pathlib import Path

import pytest
import torch

from diffmoe_scale.config.load import load_config
from diffmoe_scale.data.features.locate import find_feature_set
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.model.networks import build_networks
from diffmoe_scale.train.loss import condition_of
from diffmoe_scale.train.setup import refuse_other_features
from tests.encoders.text.language_models import write_model
from tests.moe.layers import alone
from tests.prepare.feature_sets import batches, cache, train_pattern

# Stored numbers keep 8 binary digits.
close = partial(torch.testing.assert_close, rtol=2**-7, atol=2**-7)


def words_of(settings: list[str], encoders: Path, folder: Path, *, layer: int = -1) -> list[str]:
    """The settings with CLIP, an encoder that is trained along, and Qwen3."""
    entries = [
        f"{{kind: open_clip, path: 'local-dir:{encoders / 'clip'}', max_tokens: 12, precision: fp32}}",
        "{kind: sentencepiece, max_tokens: 12}",
        f"{{kind: transformers, path: '{folder}', max_tokens: 24, layer: {layer}, precision: fp32}}",
    ]
    kept = [word for word in settings if not word.startswith("text.")]
    return [*kept, f"text.encoders=[{', '.join(entries)}]", "model.text_projection=true"]


@pytest.mark.usefixtures("one_process")
def test_cached_streams_are_those_of_encoding_on_the_fly_and_text_stands_beside_them(
    tmp_path: Path, encoders: Path, settings: list[str]
) -> None:
    folder = write_model("qwen3", tmp_path / "qwen3")
    words = words_of(settings, encoders, folder)
    assert cache(tmp_path / "cache", words, shards="00[01]") == 0
    config = load_config(None, words)
    train_tokenizer(["a red circle", "two long words"], vocabulary=300, path=tmp_path / "tokenizer")
    networks = build_networks(
        config, tokenizer_path=tmp_path / "tokenizer", groups=alone(), device=torch.device("cpu")
    )
    raw, cached = (
        build_reader(config.data, [shards], model=config.model, seed=3, trains_text=True)
        for shards in (train_pattern(settings, "00[01]"), f"{tmp_path}/cache/*.tar")
    )
    refuse_other_features([cached], networks, config)
    for ours, plain in zip(batches(cached, 5), batches(raw, 5), strict=True):
        assert ours.keys == plain.keys and ours.captions == plain.captions and ours.text is not None
        found, expected = (
            networks.denoiser.encode(condition_of(batch, networks)).text for batch in (ours, plain)
        )
        assert found is not None and expected is not None and len(found.streams) == 3
        for stream, of_plain in zip(found.streams, expected.streams, strict=True):
            assert torch.equal(stream.mask_BL, of_plain.mask_BL)
            valid = stream.mask_BL
            close(stream.tokens_BLT[valid], of_plain.tokens_BLT[valid])


@pytest.mark.usefixtures("one_process")
def test_the_encoder_that_differs_is_named(tmp_path: Path, encoders: Path, settings: list[str]) -> None:
    folder = write_model("qwen3", tmp_path / "qwen3")
    assert cache(tmp_path / "cache", words_of(settings, encoders, folder), shards="000") == 0
    config = load_config(None, words_of(settings, encoders, folder, layer=-2))
    train_tokenizer(["a red circle"], vocabulary=300, path=tmp_path / "tokenizer")
    networks = build_networks(
        config, tokenizer_path=tmp_path / "tokenizer", groups=alone(), device=torch.device("cpu")
    )
    found = find_feature_set([tmp_path / "cache" / "shard-000.tar"])
    assert found is not None and found.source.num_streams == 2
    reader = build_reader(config.data, [f"{tmp_path}/cache/*.tar"], model=config.model, seed=3)
    with pytest.raises(
        ValueError, match=r"features of other settings: text encoder 1 '[0-9a-f]{16}' instead"
    ):
        refuse_other_features([reader], networks, config)
