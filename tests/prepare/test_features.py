import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diffmoe_scale.config.load import load_config
from diffmoe_scale.data.features.source import SET_FILE
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.prepare import encoding
from diffmoe_scale.prepare.prepared import training_settings
from diffmoe_scale.train.setup import refuse_other_features
from tests.data.samples import color, encode
from tests.prepare.feature_sets import BUCKETS, batches, cache, reader, shards

pytestmark = pytest.mark.usefixtures("one_process")


def test_ranks_share_the_shards_and_the_last_one_publishes(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cache(tmp_path / "cache", settings) == 0 and not (tmp_path / "cache").exists()
    assert sorted(path.name for path in (tmp_path / "cache.unfinished").glob("*.tar")) == [
        "shard-000.tar",
        "shard-002.tar",
    ]
    monkeypatch.setenv("RANK", "1")
    assert cache(tmp_path / "cache", settings) == 0
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3 and not (tmp_path / "cache.unfinished").exists()


def test_a_stopped_call_goes_on_where_it_was(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = encoding.write_shard

    def stop_at_the_last(path: Path, samples: object) -> None:
        if path.name == "shard-002.tar":
            raise KeyboardInterrupt
        write(path, samples)  # type: ignore[arg-type]  # handed on

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "write_shard", stop_at_the_last)
        assert cache(tmp_path / "cache", settings) == 130
    kept = (tmp_path / "cache.unfinished" / "shard-001.tar").stat()
    assert cache(tmp_path / "cache", settings) == 0
    assert (tmp_path / "cache" / "shard-001.tar").stat() == kept and (
        tmp_path / "cache" / "shard-002.tar"
    ).is_file()
    assert cache(tmp_path / "cache", settings) == 0 and (tmp_path / "cache" / "shard-001.tar").stat() == kept


def test_broken_pictures_are_left_out_and_named(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cache(tmp_path / "cache", settings, shards="002") == 0
    assert "  shard-002.tar/2_1: BadPicture" in capfd.readouterr().out
    assert reader(load_config(None, settings), f"{tmp_path}/cache/*.tar").num_samples == 2


def test_features_of_other_encoders_are_refused(
    tmp_path: Path, settings: list[str], pipeline: Networks, encoders: Path
) -> None:
    assert cache(tmp_path / "cache", settings) == 0
    config = load_config(None, settings)
    source = reader(config, f"{tmp_path}/cache/*.tar")
    refuse_other_features([source, None], pipeline, config)
    flipped = load_config(None, [*settings, "data.horizontal_flip=true"])
    with pytest.raises(ValueError, match=r"data\.horizontal_flip is True; expected false"):
        refuse_other_features([source], pipeline, flipped)
    other = replace(pipeline, frozen=pipeline.frozen | {"autoencoder": "0123456789abcdef"})
    with pytest.raises(ValueError, match="features of other settings: autoencoder '"):
        refuse_other_features([source], other, config)


def test_features_of_other_shapes_are_refused(tmp_path: Path, settings: list[str]) -> None:
    assert cache(tmp_path / "cache", [*settings, *BUCKETS], shards="000") == 0
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
            reader(load_config(None, [*settings, *BUCKETS, change]), f"{tmp_path}/cache/*.tar")


def test_shards_without_what_describes_them_are_refused(tmp_path: Path, settings: list[str]) -> None:
    assert cache(tmp_path / "cache", settings, shards="000") == 0
    (tmp_path / "cache" / SET_FILE).unlink()
    with pytest.raises(ValueError, match=r"features\.safetensors is missing or damaged"):
        reader(load_config(None, settings), f"{tmp_path}/cache/*.tar")


def test_an_encoder_that_is_trained_along_is_not_cached(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    plain = [setting for setting in settings if not setting.startswith("text.")]
    assert (
        cache(tmp_path / "cache", plain, shards="000") == 0
        and "its features are not cached" in capfd.readouterr().out
    )
    (batch,) = batches(reader(load_config(None, plain), f"{tmp_path}/cache/*.tar"), 1)
    assert batch.text is None and batch.latents_BCHW is not None and any(batch.captions)


def test_changed_shards_are_named(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    picture = encode(Image.new("RGB", (4, 4), color(0, 1)))
    other = shards(tmp_path / "raw", settings, {})
    assert cache(tmp_path / "cache", other) == 0
    shards(tmp_path / "raw", settings, {"0_1": {"png": picture, "txt": b"caption 0 X"}})
    assert cache(tmp_path / "cache", other) == 2
    assert "files: " in (error := capfd.readouterr().err) and "shard-000.tar" in error
    assert cache(tmp_path / "cache", other, "--overwrite") == 0
    with tarfile.open(tmp_path / "cache" / "shard-000.tar") as archive:
        file = archive.extractfile("0_1.txt")
        assert file is not None and file.read() == b"caption 0 X"


def test_other_caption_weights_are_named(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cache(tmp_path / "cache", settings, shards="000") == 0
    weights = "data.caption_weights={txt: 0, caption: 1}"
    assert cache(tmp_path / "cache", [*settings, weights], shards="000") == 2
    assert "caption_weights: " in capfd.readouterr().err


def test_a_shard_without_a_good_picture_is_an_empty_one(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    broken = {f"1_{row}": {"png": b"garbage", "txt": b"x"} for row in range(2)}
    other = shards(tmp_path / "raw", settings, broken)
    assert cache(tmp_path / "cache", other) == 0
    assert "sample whose picture cannot be used: 2" in capfd.readouterr().out
    told = json.loads((tmp_path / "cache" / "features.json").read_text())["left_out"]
    (names,) = (entry["names"] for entry in told.values())
    assert [name.split(":")[0] for name in names] == ["shard-001.tar/1_0", "shard-001.tar/1_1"]
    assert reader(load_config(None, settings), f"{tmp_path}/cache/*.tar").num_samples == 3
    assert cache(tmp_path / "cache", other) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["autoencoder.kind=pixels", "autoencoder.path="], "pixels need no cache"),
        (["model.image_size=18"], "a multiple of 8"),
        (
            [*BUCKETS, "buckets.step=4"],
            "buckets.step is 4; expected a multiple of 8: the autoencoder's factor 4 times",
        ),
        ([*BUCKETS, "buckets.resolutions=[[1,8],[4,16]]"], "expected none but model.image_size (16)"),
    ],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    if "pixels" in changed[0]:
        settings = [setting for setting in settings if not setting.startswith("model.channels")]
    assert cache(tmp_path / "cache", [*settings, *changed]) == 2
    assert message in capfd.readouterr().err


def test_a_budget_too_small_writes_nothing(
    tmp_path: Path, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cache(tmp_path / "cache", settings, "--budget", "20K") == 2
    assert "--budget is 20K, less than" in capfd.readouterr().err and not list(tmp_path.glob("cache*"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.tar"], "'data.train=[out/*.tar]'"),
        (
            ["train-0.tar", "validation-0.tar"],
            "'data.train=[out/train-*.tar]' 'data.validation=[out/validation-*.tar]'",
        ),
        (["validation-0.tar"], "'data.validation=[out/validation-*.tar]'"),
    ],
)
def test_shards_of_validation_are_not_named_for_training(names: list[str], words: str) -> None:
    assert training_settings(Path("out"), names) == words
