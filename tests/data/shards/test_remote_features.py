from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import SET_FILE, FeatureSet, FeatureSource
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.data.reading.reader import Reader
from tests.data.samples import read_batches, write_shards
from tests.data.shards.servers import COUNTS, Server, make_reader

SOURCE = FeatureSource(
    "a", "", channels=1, factor=2, image_size=4, aspects=(), step=0, num_views=1, precision="bf16"
)


def write_features(folder: Path, source: FeatureSource = SOURCE) -> None:
    """Latents that all differ."""
    folder.mkdir(exist_ok=True)
    replaced = {}
    for number, count in enumerate(COUNTS):
        for row in range(count):
            latents_VCHW = torch.full((1, 1, 2, 2), 10.0 * number + row)
            replaced[f"{number}_{row}"] = {
                "safetensors": pack_sample(
                    latents_VCHW, [], [], original=Size(4, 4), crop=(0, 0), precision="bf16"
                ),
                "txt": b"c",
            }
    write_shards(folder, COUNTS, replaced=replaced)
    FeatureSet(source).save(folder)


def read_latents(reader: Reader) -> list[float]:
    return [
        value
        for batch in islice(read_batches(reader, global_batch=3, micro_batch=3), 12)
        if batch.latents_BCHW is not None
        for value in batch.latents_BCHW[:, 0, 0, 0].tolist()
    ]


def test_features_behind_a_server_are_those_of_local_shards_told_by_one_file_a_folder(
    tmp_path: Path, server: Server
) -> None:
    for name in "ab":
        write_features(tmp_path / "served" / name)
    local = read_latents(make_reader(tmp_path, f"{tmp_path}/served/{{a,b}}/shard-{{000..005}}.tar"))
    for _ in range(2):
        reader = make_reader(tmp_path, f"{server.url}/{{a,b}}/shard-{{000..005}}.tar")
        assert reader.source.features is not None and reader.source.features.source == SOURCE
        assert read_latents(reader) == local and reader.judge.bad_samples == 0
    assert {path: count for path, count in server.requests.items() if path.endswith(SET_FILE)} == {
        f"/a/{SET_FILE}": 1,
        f"/b/{SET_FILE}": 1,
    }


def test_features_of_other_sources_are_not_mixed_behind_urls(tmp_path: Path, server: Server) -> None:
    write_features(tmp_path / "served" / "a")
    write_features(tmp_path / "served" / "b", replace(SOURCE, autoencoder="b"))
    with pytest.raises(
        ValueError,
        match=(
            r"features of http.*/a/features\.safetensors and http.*/b/.*cannot be mixed: autoencoder "
            r"'a' instead of 'b'"
        ),
    ):
        make_reader(tmp_path, f"{server.url}/{{a,b}}/shard-000.tar")
    (tmp_path / "served" / "c").mkdir()
    with pytest.raises(ValueError, match=r"http.*/c/features\.safetensors, kept as .* is missing"):
        make_reader(tmp_path, f"{server.url}/{{a,c}}/shard-000.tar")


def test_features_whose_server_has_not_what_made_them_are_an_error_until_it_has(
    tmp_path: Path, server: Server
) -> None:
    write_features(tmp_path / "served")
    (tmp_path / "served" / SET_FILE).rename(tmp_path / SET_FILE)
    pattern = f"{server.url}/shard-{{000..005}}.tar"
    with pytest.raises(
        ValueError,
        match=(
            r"http://.*/features\.safetensors, kept as .* is missing or damaged .*belongs beside the "
            r"shards"
        ),
    ):
        make_reader(tmp_path, pattern)
    (tmp_path / SET_FILE).rename(tmp_path / "served" / SET_FILE)
    assert make_reader(tmp_path, pattern).source.features is not None


def test_features_out_of_a_command_are_refused(tmp_path: Path) -> None:
    write_features(tmp_path / "served")
    with pytest.raises(
        ValueError,
        match=(
            r"pipe:cat .* gives features, but a command names no folder .*by URLs of http, s3 or gs, "
            r"or copy them"
        ),
    ):
        make_reader(tmp_path, f"pipe:cat {tmp_path}/served/shard-000.tar")


def test_a_server_that_answers_every_path_serves_pictures_all_the_same(
    tmp_path: Path, server: Server
) -> None:
    served = tmp_path / "served"
    page = b"<!doctype html><title>Files</title>" * 9
    (served / SET_FILE).write_bytes(page)
    for path in served.glob("*.tar"):
        for kind in (".index.npz", ".sizes.index.npz"):
            (served / f"{path.name}{kind}").write_bytes(page)
    for _ in range(2):
        reader = make_reader(tmp_path, f"{server.url}/shard-{{000..005}}.tar")
        assert reader.source.features is None and reader.num_samples == sum(COUNTS)


@pytest.mark.parametrize("beginning", [b"", b"<", b"\x05\0\0\0\0\0\0\0{"])
def test_features_whose_set_file_is_another_file_are_refused(
    tmp_path: Path, server: Server, beginning: bytes
) -> None:
    write_features(tmp_path / "served")
    (tmp_path / "served" / SET_FILE).write_bytes(beginning)
    with pytest.raises(ValueError, match="is missing or damaged"):
        make_reader(tmp_path, f"{server.url}/shard-{{000..005}}.tar")
