import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.features.source import SET_FILE
from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.data.reading.reader import Reader, build_reader
from diffmoe_scale.encoders.autoencoder.build import build_autoencoder
from diffmoe_scale.encoders.text.features import TextFeatures
from diffmoe_scale.model.networks import Networks, build_networks
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.prepare import encoding
from diffmoe_scale.train.loss import condition_of, denoising_loss, latents_of
from diffmoe_scale.train.trainer import refuse_other_features
from tests.data.samples import color, encode, read_batches, write_shards
from tests.encoders.autoencoder.test_diffusers import tiny_model
from tests.encoders.text.texts import TOWER
from tests.moe.layers import alone
from tools import cache_features

# Stored numbers keep 8 binary digits.
BF16 = {"rtol": 2**-7, "atol": 2**-7}
# Of 24 x 8, 16 x 16 and 8 x 24 pixels.
BUCKETS = (
    "buckets.enabled=true",
    "buckets.aspects=[0.5,1.0,2.0]",
    "buckets.step=8",
    "model.size_conditioning=true",
)


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def pipeline(settings: list[str]) -> Networks:
    return _pipeline(load_config(None, settings))


def _pipeline(config: Config) -> Networks:
    pipeline = build_networks(config, tokenizer_path=Path(), groups=alone(), device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pipeline.denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return pipeline


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "29500"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def _cache(output: Path, settings: list[str], *options: str, shards: str = "*") -> int:
    folder = Path(load_config(None, settings).data.train[0]).parent
    (output.parent / "empty.yaml").touch()
    command = [
        "--config",
        str(output.parent / "empty.yaml"),
        "--input",
        f"{folder}/shard-{shards}.tar",
        "--output",
        str(output),
        "--batch",
        "4",
    ]
    return cache_features.main([*command, *options, *settings])


def _reader(config: Config, shards: str) -> Reader:
    return build_reader(config.data, [shards], model=config.model, seed=3, buckets=config.buckets)


def _batches(reader: Reader, count: int) -> list[Batch]:
    batches = read_batches(reader, global_batch=4, micro_batch=4)
    return [next(batches) for _ in range(count)]


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
    assert _cache(tmp_path / "cache", [*settings, *options], shards="00[01]") == 0
    config = load_config(None, [*settings, *options])
    pipeline = _pipeline(config)
    raw = _batches(_reader(config, config.data.train[0].replace("*", "00[01]")), 6)
    cached = _batches(_reader(config, f"{tmp_path}/cache/*.tar"), 6)
    assert len({batch.pixels_BHWC.shape[1:3] for batch in raw}) == (3 if config.buckets.enabled else 1)
    for ours, plain in zip(cached, raw, strict=True):
        assert (
            ours.keys == plain.keys
            and not any(ours.captions)
            and ours.pixels_BHWC is None
            and ours.text is not None
        )
        assert torch.equal(ours.indices_B, plain.indices_B) and torch.equal(ours.sizes_BZ, plain.sizes_BZ)
        latents_BCHW = latents_of(plain, pipeline.autoencoder, pipeline.device)
        torch.testing.assert_close(
            latents_of(ours, pipeline.autoencoder, pipeline.device), latents_BCHW, **BF16
        )
        text = condition_of(plain, pipeline).text
        assert text is not None and torch.equal(ours.text.mask_BL, text.mask_BL)
        torch.testing.assert_close(
            ours.text.tokens_BLT.float()[text.mask_BL], text.tokens_BLT[text.mask_BL], **BF16
        )
        rounded = TextFeatures(text.tokens_BLT.bfloat16(), text.mask_BL, text.pooled_BV.bfloat16())
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
    assert _cache(tmp_path / "cache", [*settings, *options]) == 0
    estimate = float(re.search(r"about ([\d.]+) KB", capfd.readouterr().out)[1]) * 1000
    written = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
    assert abs(estimate - written) < 0.05 * written


def test_a_budget_too_small_writes_nothing(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert _cache(tmp_path / "cache", settings, "--budget", "20K") == 2
    assert "--budget is 20K, less than" in capfd.readouterr().err and not list(tmp_path.glob("cache*"))


def test_half_the_bits_store_fp8(tmp_path: Path, settings: list[str]) -> None:
    assert _cache(tmp_path / "cache", settings, "--precision", "fp8", shards="001") == 0
    config = load_config(None, settings)
    (ours,) = _batches(_reader(config, f"{tmp_path}/cache/*.tar"), 1)
    (plain,) = _batches(_reader(config, config.data.train[0].replace("*", "001")), 1)
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
        assert _cache(tmp_path / batch, [*settings, *BUCKETS], "--batch", batch, shards="001") == 0
        with tarfile.open(tmp_path / batch / "shard-001.tar") as archive:
            assert [
                name.removesuffix(".safetensors")
                for name in archive.getnames()
                if name.endswith(".safetensors")
            ] == expected


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
    assert _cache(tmp_path / "cache", [*elsewhere, *BUCKETS]) == 0
    assert (
        "shard-000.tar/0_1: decoded it is 16 x 32, of another bucket than its header says"
        in capfd.readouterr().out
    )
    assert _reader(load_config(None, [*settings, *BUCKETS]), f"{tmp_path}/cache/*.tar").num_samples == 2


def test_ranks_share_the_shards_and_the_last_one_publishes(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _cache(tmp_path / "cache", settings) == 0 and not (tmp_path / "cache").exists()
    assert sorted(path.name for path in (tmp_path / "cache.unfinished").glob("*.tar")) == [
        "shard-000.tar",
        "shard-002.tar",
    ]
    monkeypatch.setenv("RANK", "1")
    assert _cache(tmp_path / "cache", settings) == 0
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3 and not (tmp_path / "cache.unfinished").exists()


def test_a_stopped_call_goes_on_where_it_was(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = encoding.write_shard

    def stop_at_the_last(path: Path, samples: object) -> None:
        if path.name == "shard-002.tar":
            raise KeyboardInterrupt
        write(path, samples)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "write_shard", stop_at_the_last)
        assert _cache(tmp_path / "cache", settings) == 130
    kept = (tmp_path / "cache.unfinished" / "shard-001.tar").stat()
    assert _cache(tmp_path / "cache", settings) == 0
    assert (tmp_path / "cache" / "shard-001.tar").stat() == kept and (
        tmp_path / "cache" / "shard-002.tar"
    ).is_file()
    assert _cache(tmp_path / "cache", settings) == 0 and (tmp_path / "cache" / "shard-001.tar").stat() == kept


def test_broken_pictures_are_left_out_and_named(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert _cache(tmp_path / "cache", settings, shards="002") == 0
    assert "  shard-002.tar/2_1: BadPicture" in capfd.readouterr().out
    assert _reader(load_config(None, settings), f"{tmp_path}/cache/*.tar").num_samples == 2


def test_features_of_other_encoders_are_refused(
    tmp_path: Path, settings: list[str], pipeline: Networks, encoders: Path
) -> None:
    assert _cache(tmp_path / "cache", settings) == 0
    config = load_config(None, settings)
    reader = _reader(config, f"{tmp_path}/cache/*.tar")
    refuse_other_features([reader, None], pipeline, config)
    flipped = load_config(None, [*settings, "data.horizontal_flip=true"])
    with pytest.raises(ValueError, match=r"data\.horizontal_flip is True; expected false"):
        refuse_other_features([reader], pipeline, flipped)
    other = replace(pipeline, frozen=pipeline.frozen | {"autoencoder": "0123456789abcdef"})
    with pytest.raises(ValueError, match="features of other settings: autoencoder '"):
        refuse_other_features([reader], other, config)


def test_features_of_other_shapes_are_refused(tmp_path: Path, settings: list[str]) -> None:
    assert _cache(tmp_path / "cache", [*settings, *BUCKETS], shards="000") == 0
    told = json.loads((tmp_path / "cache" / "features.json").read_text())
    assert (told["aspects"], told["step"], told["image_size"]) == ([0.5, 1.0, 2.0], 8, 16)
    changes = {
        "buckets.aspects=[0.5,1.0]": r"aspects \(0\.5, 1\.0, 2\.0\) instead of \(0\.5, 1\.0\)",
        "buckets.enabled=false": "aspects .* instead of 'none'",
        "model.image_size=32": "image_size 16 instead of 32",
        "buckets.resolutions=[[1,8],[4,16]]": r"buckets\.resolutions is .*; expected none but model",
    }
    for change, message in changes.items():
        with pytest.raises(ValueError, match=message):
            _reader(load_config(None, [*settings, *BUCKETS, change]), f"{tmp_path}/cache/*.tar")


def test_shards_without_what_describes_them_are_refused(tmp_path: Path, settings: list[str]) -> None:
    assert _cache(tmp_path / "cache", settings, shards="000") == 0
    (tmp_path / "cache" / SET_FILE).unlink()
    with pytest.raises(ValueError, match=r"features\.safetensors is missing or damaged"):
        _reader(load_config(None, settings), f"{tmp_path}/cache/*.tar")


def test_an_encoder_that_is_trained_along_is_not_cached(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    plain = [setting for setting in settings if not setting.startswith("text.")]
    assert (
        _cache(tmp_path / "cache", plain, shards="000") == 0
        and "their features are not cached" in capfd.readouterr().out
    )
    (batch,) = _batches(_reader(load_config(None, plain), f"{tmp_path}/cache/*.tar"), 1)
    assert batch.text is None and batch.latents_BCHW is not None and any(batch.captions)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["autoencoder.kind=pixels", "autoencoder.path="], "pixels need no cache"),
        (["model.image_size=18"], "a multiple of 4"),
        (
            [*BUCKETS, "buckets.step=4"],
            "buckets.step is 4; expected a multiple of 8 (model.patch_size times the autoencoder's factor)",
        ),
        ([*BUCKETS, "buckets.resolutions=[[1,8],[4,16]]"], "expected none but model.image_size (16)"),
    ],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    if "pixels" in changed[0]:
        settings = [setting for setting in settings if not setting.startswith("model.channels")]
    assert _cache(tmp_path / "cache", [*settings, *changed]) == 2
    assert message in capfd.readouterr().err


def _shards(folder: Path, settings: list[str], replaced: dict[str, dict[str, bytes]]) -> list[str]:
    """Settings for shards of other samples."""
    folder.mkdir(exist_ok=True)
    write_shards(folder, [3, 2], replaced=replaced)
    plain = [setting for setting in settings if not setting.startswith("data.train")]
    return [*plain, f"data.train=[{folder}/shard-*.tar]"]


def test_changed_shards_are_named(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    picture = encode(Image.new("RGB", (4, 4), color(0, 1)))
    other = _shards(tmp_path / "raw", settings, {})
    assert _cache(tmp_path / "cache", other) == 0
    _shards(tmp_path / "raw", settings, {"0_1": {"png": picture, "txt": b"caption 0 X"}})
    assert _cache(tmp_path / "cache", other) == 2
    assert "files: " in (error := capfd.readouterr().err) and "shard-000.tar" in error
    assert _cache(tmp_path / "cache", other, "--overwrite") == 0
    with tarfile.open(tmp_path / "cache" / "shard-000.tar") as archive:
        file = archive.extractfile("0_1.txt")
        assert file is not None and file.read() == b"caption 0 X"


def test_other_caption_weights_are_named(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert _cache(tmp_path / "cache", settings, shards="000") == 0
    weights = "data.caption_weights={txt: 0, caption: 1}"
    assert _cache(tmp_path / "cache", [*settings, weights], shards="000") == 2
    assert "caption_weights: " in capfd.readouterr().err


def test_a_shard_without_a_good_picture_is_an_empty_one(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    broken = {f"1_{row}": {"png": b"garbage", "txt": b"x"} for row in range(2)}
    other = _shards(tmp_path / "raw", settings, broken)
    assert _cache(tmp_path / "cache", other) == 0
    assert "sample whose picture cannot be used: 2" in capfd.readouterr().out
    told = json.loads((tmp_path / "cache" / "features.json").read_text())["left_out"]
    (names,) = (entry["names"] for entry in told.values())
    assert [name.split(":")[0] for name in names] == ["shard-001.tar/1_0", "shard-001.tar/1_1"]
    assert _reader(load_config(None, settings), f"{tmp_path}/cache/*.tar").num_samples == 3
    assert _cache(tmp_path / "cache", other) == 0


def test_features_of_other_caption_sources_than_the_default_train(
    tmp_path: Path, settings: list[str]
) -> None:
    picture = encode(Image.new("RGB", (4, 4), color(0, 1)))
    several = {
        f"{shard}_{row}": {"png": picture, "json": b'{"long": "a red house with two windows"}'}
        for shard, count in enumerate((3, 2))
        for row in range(count)
    }
    other = _shards(tmp_path / "raw", settings, several)
    assert _cache(tmp_path / "cache", [*other, "data.caption_weights={long: 1}"]) == 0
    (batch,) = _batches(_reader(load_config(None, settings), f"{tmp_path}/cache/*.tar"), 1)
    assert batch.text is not None and not batch.uncaptioned
    assert int(batch.text.mask_BL.sum(1).max()) > 3
