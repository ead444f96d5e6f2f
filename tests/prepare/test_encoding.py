import re
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.encoders.autoencoder.build import build_autoencoder
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.prepare.encoders import Encoders
from diffmoe_scale.train.loss import condition_of, denoising_loss, latents_of
from tests.data.samples import color, encode, write_shards
from tests.prepare.conftest import pipeline_of
from tests.prepare.feature_sets import BUCKETS, batches, cache, reader, shards, train_pattern

pytestmark = pytest.mark.usefixtures("one_process")
# Stored numbers keep 8 binary digits.
close = partial(torch.testing.assert_close, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("data.horizontal_flip=true", "model.size_conditioning=true"),
        BUCKETS,
        (*BUCKETS, "data.horizontal_flip=true"),
    ],
)
def test_training_losses_are_those_of_computing_on_the_fly(
    tmp_path: Path, settings: list[str], options: tuple[str, ...]
) -> None:
    # Without the broken sample, which a cache leaves out.
    assert cache(tmp_path / "cache", [*settings, *options], shards="00[01]") == 0
    config = load_config(None, [*settings, *options])
    pipeline = pipeline_of(config)
    raw = batches(reader(config, train_pattern(settings, "00[01]")), 6)
    cached = batches(reader(config, f"{tmp_path}/cache/*.tar"), 6)
    shapes = {batch.pixels_BHWC.shape[1:3] for batch in raw if batch.pixels_BHWC is not None}
    assert len(shapes) == (3 if config.buckets.enabled else 1)
    for ours, plain in zip(cached, raw, strict=True):
        assert (
            ours.keys == plain.keys
            and not any(ours.captions)
            and ours.pixels_BHWC is None
            and ours.text is not None
        )
        assert torch.equal(ours.indices_B, plain.indices_B) and torch.equal(ours.sizes_BZ, plain.sizes_BZ)
        latents_BCHW = latents_of(plain, pipeline.autoencoder, pipeline.device)
        close(latents_of(ours, pipeline.autoencoder, pipeline.device), latents_BCHW)
        text = condition_of(plain, pipeline).text
        assert text is not None
        (cached_stream,), (stream,) = ours.text.streams, text.streams
        assert torch.equal(cached_stream.mask_BL, stream.mask_BL)
        close(cached_stream.tokens_BLT.float()[stream.mask_BL], stream.tokens_BLT[stream.mask_BL])
        rounded = text.map(lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor)
        losses = [
            denoising_loss(
                pipeline.denoiser,
                pipeline.objective,
                batch,
                latents,
                condition_of(batch, pipeline),
                seed=0,
                selection=Selection("static"),
            )
            for batch, latents in (
                (ours, latents_of(ours, pipeline.autoencoder, pipeline.device)),
                (replace(plain, text=rounded), latents_BCHW.bfloat16().float()),
            )
        ]
        # Other batches round the encoders' sums in another order, which can move a stored number by one of
        # its last digits.
        assert losses[0].total.item() == pytest.approx(losses[1].total.item(), rel=1e-3)


@pytest.mark.parametrize("options", [(), BUCKETS])
def test_the_size_is_told_before_and_kept(
    tmp_path: Path, settings: list[str], options: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cache(tmp_path / "cache", [*settings, *options]) == 0
    estimate = float(re.findall(r"about ([\d.]+) KB", capfd.readouterr().out)[0]) * 1000
    written = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
    assert abs(estimate - written) < 0.05 * written


def test_half_the_bits_store_fp8(tmp_path: Path, settings: list[str]) -> None:
    assert cache(tmp_path / "cache", settings, "--precision", "fp8", shards="001") == 0
    config = load_config(None, settings)
    (ours,) = batches(reader(config, f"{tmp_path}/cache/*.tar"), 1)
    (plain,) = batches(reader(config, train_pattern(settings, "001")), 1)
    assert plain.pixels_BHWC is not None and ours.latents_BCHW is not None
    latents_BCHW = build_pipeline_latents(config, plain)
    # 3 binary digits behind the first.
    torch.testing.assert_close(ours.latents_BCHW.float(), latents_BCHW, rtol=2**-3, atol=2**-6)


def build_pipeline_latents(config: Config, batch: Batch) -> torch.Tensor:
    assert batch.pixels_BHWC is not None
    return build_autoencoder(config.autoencoder, device=torch.device("cpu")).encode(
        to_unit_range(batch.pixels_BHWC)
    )


def test_shards_keep_the_order_of_their_samples_whatever_the_batch(
    tmp_path: Path, settings: list[str]
) -> None:
    expected = [f"1_{row}" for row in range(7)]
    for batch in ("1", "2", "32"):
        assert cache(tmp_path / batch, [*settings, *BUCKETS], "--batch", batch, shards="001") == 0
        with tarfile.open(tmp_path / batch / "shard-001.tar") as archive:
            assert [
                name.removesuffix(".safetensors")
                for name in archive.getnames()
                if name.endswith(".safetensors")
            ] == expected


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_features_that_overflow_are_left_out_and_a_shard_of_them_ends_the_work(
    tmp_path: Path,
    settings: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    views, bad = Encoders.views, slice(1)

    def overflow(self: Encoders, images_BCHW: torch.Tensor, num_views: int) -> torch.Tensor:
        latents_BVCHW = views(self, images_BCHW, num_views)
        latents_BVCHW[bad, :, 0, 0, 0] = torch.inf
        return latents_BVCHW

    monkeypatch.setattr(Encoders, "views", overflow)
    words = "--precision", precision
    assert cache(tmp_path / "some", settings, *words, shards="001") == 0
    assert "sample with features that are not finite numbers: 2\n  1_0\n  1_4\n" in capfd.readouterr().out
    assert reader(load_config(None, settings), f"{tmp_path}/some/*.tar").num_samples == 5
    bad = slice(None)
    assert cache(tmp_path / "all", settings, *words, shards="001") == 1
    assert "no sample of shard-001.tar has features that are finite numbers" in capfd.readouterr().err


def test_a_picture_that_is_turned_behind_its_pixels_is_left_out(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (32, 16)), exif=exif)
    first = data.index(b"eXIf") - 4
    size = 12 + int.from_bytes(data[first : first + 4], "big")
    moved = data[:first] + data[first + size : -12] + data[first : first + size] + data[-12:]
    write_shards(tmp_path, [3], replaced={"0_1": {"png": moved, "txt": b"turned"}})
    elsewhere = [
        *(setting for setting in settings if not setting.startswith("data.train")),
        f"data.train=[{tmp_path}/shard-*.tar]",
    ]
    assert cache(tmp_path / "cache", [*elsewhere, *BUCKETS]) == 0
    assert (
        "shard-000.tar/0_1: decoded it is 16 x 32, of another bucket than its header says"
        in capfd.readouterr().out
    )
    assert reader(load_config(None, [*settings, *BUCKETS]), f"{tmp_path}/cache/*.tar").num_samples == 2


def test_features_of_other_caption_sources_than_the_default_train(
    tmp_path: Path, settings: list[str]
) -> None:
    picture = encode(Image.new("RGB", (4, 4), color(0, 1)))
    several = {
        f"{shard}_{row}": {"png": picture, "json": b'{"long": "a red house with two windows"}'}
        for shard, count in enumerate((3, 2))
        for row in range(count)
    }
    other = shards(tmp_path / "raw", settings, several)
    assert cache(tmp_path / "cache", [*other, "data.caption_weights={long: 1}"]) == 0
    (batch,) = batches(reader(load_config(None, settings), f"{tmp_path}/cache/*.tar"), 1)
    assert batch.text is not None and not batch.uncaptioned
    assert int(batch.text.streams[0].mask_BL.sum(1).max()) > 3
