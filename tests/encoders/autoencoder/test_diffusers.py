import time
from pathlib import Path

import pytest
import torch

from diffmoe_scale.encoders.autoencoder.diffusers import load_autoencoder
from diffmoe_scale.encoders.fingerprint import fingerprint
from tests.encoders.autoencoder.models import (
    CPU,
    FORMATS,
    build,
    config_of,
    images,
    load_kind,
    tiny_model,
)


def test_config_without_a_shift_means_no_shift(tmp_path: Path) -> None:
    tiny_model(scaling_factor=2.0).save_pretrained(tmp_path)
    with torch.no_grad():
        z_BCHW = tiny_model().encode(images()).latent_dist.mean
    torch.testing.assert_close(build(tmp_path).encode(images()), 2 * z_BCHW)


def test_statistics_and_a_scaling_factor_together_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    statistics = {"latents_mean": [0.0] * 16, "latents_std": [2.0] * 16}
    tiny_model(scaling_factor=0.5, **statistics).save_pretrained(tmp_path)
    build(tmp_path, normalization="statistics")
    assert "REPA-E" not in caplog.text
    build(tmp_path)
    assert "REPA-E's folders are meant without scaling_factor" in caplog.text


@pytest.mark.parametrize("kind", FORMATS)
def test_bf16_is_near_fp32_and_has_another_fingerprint(kind: str, tmp_path: Path) -> None:
    exact = load_kind(kind, tmp_path)
    coarse = load_autoencoder(config_of(kind, tmp_path, precision="bf16"), device=CPU)
    latents_BCHW, near_BCHW = exact.encode(images()), coarse.encode(images())
    assert near_BCHW.dtype == torch.float32 and not torch.equal(near_BCHW, latents_BCHW)
    # A bf16 number has 8 bits, and each layer rounds: a tenth of the deviation at most in these networks.
    assert float((near_BCHW - latents_BCHW).abs().max() / latents_BCHW.std()) < 0.2
    decoded_BCHW, expected_BCHW = coarse.decode(latents_BCHW), exact.decode(latents_BCHW)
    assert decoded_BCHW.dtype == torch.float32 and not torch.equal(decoded_BCHW, expected_BCHW)
    assert float((decoded_BCHW - expected_BCHW).abs().max()) < 0.2
    time.sleep(0.1)  # a step of the file system's clock
    assert exact.fingerprint() != coarse.fingerprint()
    # Both are kept in one record.
    again = [
        load_autoencoder(config_of(kind, tmp_path, precision=one), device=CPU) for one in ("fp32", "bf16")
    ]
    assert [one.fingerprint() for one in again] == [exact.fingerprint(), coarse.fingerprint()]


@pytest.mark.parametrize("kind", FORMATS)
def test_tiles_give_a_picture_of_the_same_size_and_other_pixels(kind: str, tmp_path: Path) -> None:
    whole = load_kind(kind, tmp_path)
    side = 8 * whole.factor
    tiled = load_autoencoder(config_of(kind, tmp_path, tile=side), device=CPU)
    small_BCHW, large_BCHW = images(side, side), images(2 * side, 3 * side)
    latents_BCHW = whole.encode(large_BCHW)
    assert torch.equal(tiled.encode(large_BCHW), latents_BCHW)
    assert torch.equal(tiled.decode(whole.encode(small_BCHW)), whole.decode(whole.encode(small_BCHW)))
    decoded_BCHW, expected_BCHW = tiled.decode(latents_BCHW), whole.decode(latents_BCHW)
    assert decoded_BCHW.shape == expected_BCHW.shape == large_BCHW.shape
    assert not torch.equal(decoded_BCHW, expected_BCHW)
    assert tiled.fingerprint() == whole.fingerprint()


def test_the_fingerprint_is_that_of_the_weights_and_is_kept_beside_them(tmp_path: Path) -> None:
    tiny_model(scaling_factor=1.5).save_pretrained(tmp_path)
    time.sleep(0.1)  # a step of the file system's clock
    first = build(tmp_path)
    expected = fingerprint(first.model, [[[0.0]]], [[[1.5]]])
    assert first.fingerprint() == build(tmp_path).fingerprint() == expected
    assert expected in (tmp_path / "fingerprint.json").read_text(encoding="utf-8")
