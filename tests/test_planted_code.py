"""Loading a file runs no code: it is planted in every binary format that is read, and each file is refused
with a sentence or read without it. Formats of text: test_planted_commands.py."""

import gzip
import io
import itertools
import json
import pickle
import re
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any  # settings of any type

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml

from diffmoe_scale.checkpoint.files import read_metadata
from diffmoe_scale.checkpoint.manifest import Manifest, describe_file, read_manifest, write_manifest
from diffmoe_scale.checkpoint.weights import fill_tensors
from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.data import BucketConfig, DataConfig
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.data.features.format import unpack_sample
from diffmoe_scale.data.features.locate import load_feature_set, set_file
from diffmoe_scale.data.features.source import FeatureSource
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.pictures import Size, open_image
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX
from diffmoe_scale.data.shards.sidecar import CHECKSUM_BYTES
from diffmoe_scale.encoders.autoencoder.build import build_autoencoder
from diffmoe_scale.encoders.text.tokenizer import load_tokenizer
from diffmoe_scale.evaluation.results import read_evaluation
from diffmoe_scale.prepare.entries import list_pictures
from diffmoe_scale.prepare.place import Columns
from diffmoe_scale.prepare.publish import read_set_manifest
from diffmoe_scale.prepare.sources import Sources
from diffmoe_scale.sampling.prompts import read_prompt_file
from diffmoe_scale.telemetry.metrics import MetricsWriter, read_metrics
from tests.data.samples import make_sample, read_batches, write_shard, write_shards
from tests.encoders.autoencoder.models import tiny_model
from tests.encoders.text.texts import TOWER, load_encoder
from tests.planted import BINARY, file_of, numpy_archive, plain_pickle, script, torch_archive, yaml_tag

CPU = torch.device("cpu")
BUCKETS = BucketConfig(enabled=True, aspects=(0.5, 1.0), step=2)
SOURCE = FeatureSource(
    "a", "", channels=4, factor=8, image_size=32, aspects=(1.0,), step=8, num_views=1, precision="bf16"
)


# Each of the binary files, by name: how it is read, and the sentence, or "" where it is left out in silence.
def read_distcp(path: Path) -> None:
    """The planted file in the place of a checkpoint's tensors, with check sums that fit."""
    folder = path.parent / "checkpoint"
    dcp.save({"master/w": torch.zeros(3)}, checkpoint_id=folder, no_dist=True)
    metadata = read_metadata(folder / ".metadata")
    for place in metadata.storage_data.values():
        place.offset, place.length = 0, path.stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    path.replace(folder / "__0_0.distcp")
    files = {name: describe_file(folder / name) for name in (".metadata", "__0_0.distcp")}
    write_manifest(
        folder, Manifest(step=1, samples=1, optimizer_steps=1, shapes={"master/w": [3]}, files=files)
    )
    fill_tensors(folder, {"w": torch.zeros(3)}, family="master", settings={})


def read_open_clip(path: Path) -> object:
    text = json.dumps({"model_cfg": TOWER, "preprocess_cfg": {}})
    file_of(path.parent, "open_clip_config.json", text.encode())
    config = TextConfig(kind="open_clip", open_clip_weights=f"local-dir:{path.parent}", max_tokens=12)
    return load_encoder(config)


def read_autoencoder(path: Path) -> object:
    tiny_model().save_config(path.parent)
    return build_autoencoder(AutoencoderConfig(kind="kl", path=str(path.parent)), device=CPU)


def resume_metrics(path: Path) -> None:
    MetricsWriter(path, resume_step=3).close()
    assert path.read_bytes() == b"" and read_metrics(path) == []


def read_member(path: Path) -> object:
    return unpack_sample(path.read_bytes(), SOURCE, Size(32, 32))


BINARY_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    ".metadata": (read_metadata, r"is refused|is damaged"),
    "__0_0.distcp": (read_distcp, r"is damaged: rank 0"),
    "manifest.json": (lambda path: read_manifest(path.parent), r"manifest\.json cannot be read"),
    "features.safetensors": (lambda path: load_feature_set(set_file(path)), r"is missing or damaged"),
    "0.safetensors": (read_member, ""),
    "tokenizer.model": (lambda path: load_tokenizer(path, vocabulary=9), r"cannot be read as a sentencepi"),
    "open_clip_model.safetensors": (read_open_clip, r"text\.open_clip_weights .* does not load"),
    "open_clip_pytorch_model.bin": (read_open_clip, r"text\.open_clip_weights .* does not load"),
    "weights.pth": (read_open_clip, r"text\.open_clip_weights .* does not load"),
    "diffusion_pytorch_model.safetensors": (read_autoencoder, r"autoencoder\.path is"),
    "diffusion_pytorch_model.bin": (read_autoencoder, r"autoencoder\.path is"),
    "evaluation.json": (read_evaluation, r"is no evaluation"),
    "metrics.jsonl": (resume_metrics, ""),
    "config.yaml": (load_config, r"config file"),
    "shards.json": (lambda path: read_set_manifest(path.parent, path.name), ""),
    "prompts.jsonl": (read_prompt_file, r"line 1 is no JSON"),
    "a.parquet": (lambda path: list(list_pictures(path, Columns()).entries), r"cannot be read"),
    "a.png": (lambda path: open_image(path.read_bytes()), r"no picture"),
}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that planted code makes."""
    return tmp_path / "ran"


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("name", BINARY_FILES)
def test_a_binary_file_with_code_is_refused_and_not_run(
    tmp_path: Path, marker: Path, name: str, kind: str
) -> None:
    read, message = BINARY_FILES[name]
    path = file_of(tmp_path / "folder", name, BINARY[kind](marker))
    try:
        read(path)
        assert not message
    except (ValueError, RunError) as error:
        assert re.search(message, str(error)), error
    assert not marker.exists()


def read_shard(path: Path, **settings: Any) -> list[str]:
    """The captions of a shard's samples."""
    reader = build_reader(
        DataConfig(**settings), [str(path)], model=ModelConfig(image_size=8), seed=0, buckets=BUCKETS
    )
    (batch,) = itertools.islice(read_batches(reader, global_batch=2, micro_batch=2), 1)
    return sorted(batch.captions)


def test_sidecars_with_code_are_made_anew(tmp_path: Path, marker: Path) -> None:
    (path,) = write_shards(tmp_path, [2])
    expected = ["caption 0 0", "caption 0 1"]
    assert read_shard(path) == expected
    sidecars = sorted(tmp_path.glob(f"*{INDEX_SUFFIX}"))
    assert len(sidecars) == 2
    headers = {sidecar: header_of(sidecar) for sidecar in sidecars}
    for data in (plain_pickle(marker), torch_archive(marker), numpy_archive(marker)):
        for sidecar in sidecars:
            sidecar.write_bytes(data)
        assert read_shard(path) == expected
        for sidecar in sidecars:  # as whoever plants it would: with a check sum that fits
            sidecar.write_bytes(data + checksum(data))
        assert read_shard(path) == expected
    for sidecar, header in headers.items():
        data = numpy_archive(marker, header=header)
        sidecar.write_bytes(data + checksum(data))
    assert read_shard(path) == expected
    assert not marker.exists()


def header_of(sidecar: Path) -> np.ndarray:
    """What says that a sidecar belongs to its shard."""
    with np.load(io.BytesIO(sidecar.read_bytes()[:-CHECKSUM_BYTES])) as archive:
        return np.asarray(archive["header"])


def checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=CHECKSUM_BYTES).digest()


def test_members_of_a_shard_that_other_readers_unpickle_are_not_read(tmp_path: Path, marker: Path) -> None:
    planted = {suffix: plain_pickle(marker) for suffix in ("pyd", "pickle", "pkl", "pth", "pt", "npz", "cls")}
    samples = {str(row): make_sample(0, row) | planted for row in range(2)}
    samples[f"../../{script(marker)}"] = planted
    assert read_shard(write_shard(tmp_path / "a.tar", samples)) == ["caption 0 0", "caption 0 1"]
    assert not marker.exists()


def test_sources_of_a_set_with_code_count_as_none(tmp_path: Path, marker: Path) -> None:
    for data in (plain_pickle(marker), gzip.compress(plain_pickle(marker))):
        file_of(tmp_path, "sources.json.gz", data)
        assert Sources.load(tmp_path) is None
    assert not marker.exists()


@pytest.mark.parametrize(
    "read",
    [
        lambda marker: pickle.loads(plain_pickle(marker)),
        lambda marker: torch.load(io.BytesIO(torch_archive(marker)), weights_only=False),
        lambda marker: np.load(io.BytesIO(numpy_archive(marker)), allow_pickle=True)["keys"],
        lambda marker: yaml.unsafe_load(yaml_tag(marker)),
    ],
)
def test_a_careless_reader_runs_what_is_planted_here(marker: Path, read: Callable[[Path], object]) -> None:
    read(marker)
    assert marker.exists()
