from pathlib import Path

import pytest

from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.patterns import expand_patterns
from tests.data.samples import write_shards


def test_patterns_are_paths_braces_and_globs_in_the_order_given(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [1] * 4)
    assert expand_patterns([str(tmp_path / "*.tar")]) == paths
    assert expand_patterns([str(tmp_path / "shard-{002..003}.tar"), str(paths[0])]) == [
        paths[2],
        paths[3],
        paths[0],
    ]


def test_a_shard_named_twice_is_read_once(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [1, 1])
    assert expand_patterns([str(paths[1]), str(tmp_path / "*.tar")]) == [paths[1], paths[0]]


@pytest.mark.parametrize("folder", ["set [v1]", "set {1..3}", "what?", "star*"])
def test_a_pattern_that_is_an_existing_file_is_that_file(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (path,) = write_shards(tmp_path / folder, [1])
    assert expand_patterns([str(path)]) == [path]


def test_a_wide_glob_does_not_take_indexes_for_shards(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2, 1])
    ShardCatalog(paths)
    assert expand_patterns([str(tmp_path / "shard-*")]) == paths


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], "no shards are given"),
        (["{folder}/none-*.tar"], "none-\\*.tar' matches no file"),
        (["{folder}/shard-00{0..2}.tar"], "2 of 3 shards do not exist.*shard-001.tar.*shard-002.tar"),
        (
            ["{folder}"],
            r"1 of 1 shards do not exist or are no files: .*; a folder's shards are named .*/\*\.tar",
        ),
        (["pipe:cat a.tar"], "is no local file; set data.cache_folder"),
        (["https://example.org/a.tar"], "is no local file; set data.cache_folder"),
    ],
)
def test_patterns_without_a_file_are_errors(tmp_path: Path, patterns: list[str], message: str) -> None:
    write_shards(tmp_path, [1])
    with pytest.raises(ValueError, match=message):
        expand_patterns([pattern.replace("{folder}", str(tmp_path)) for pattern in patterns])
