"""No file of a checkpoint runs code, whoever made it; damage of any kind ends in a sentence."""

import hashlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any  # what stands for a number in damaged files

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from diffmoe_scale.checkpoint.files import read_metadata
from diffmoe_scale.checkpoint.manifest import describe_file
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.checkpoint.weights import fill_tensors
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run import CheckpointConfig
from diffmoe_scale.parallel.context import ParallelContext
from tests.checkpoint.states import SETTINGS, empty_state, even_cuts, expected_state, save
from tests.ranks import run_on_ranks

FUZZ_CASES = 240


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 10 and 20, made by one rank."""
    folder = tmp_path_factory.mktemp("checkpoints")
    run_on_ranks(save, 1, folder, [10, 20])
    return folder


@pytest.fixture
def checkpoint(two_steps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "copy")) / "step_00000020"


def sign(checkpoint: Path) -> None:
    """Make check sums fit the files, as whoever plants something does."""
    path = checkpoint / "manifest.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["files"] = {name: vars(describe_file(checkpoint / name)) for name in tree["files"]}
    del tree["checksum"]
    tree["checksum"] = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(tree), encoding="utf-8")


def load(checkpoint: Path) -> torch.Tensor:
    weight = torch.zeros(3, 4)
    fill_tensors(checkpoint, {"w": weight}, family="master", settings=SETTINGS)
    return weight


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_checkpoint_is_read_as_it_was_written(checkpoint: Path) -> None:
    sign(checkpoint)
    assert load(checkpoint).flatten().tolist() == [2000.0 + i for i in range(12)]


def test_code_in_the_metadata_is_refused_and_not_run(checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Command(marker)))
    sign(checkpoint)
    with pytest.raises(ValueError, match=r"it names posix\.system, which no checkpoint holds"):
        load(checkpoint)
    assert not marker.exists()


def test_code_in_the_tensors_is_refused_and_not_run(checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    metadata = read_metadata(checkpoint / ".metadata")
    place = next(place for index, place in metadata.storage_data.items() if index.fqn == "master/w")
    planted = tmp_path / "planted"
    torch.save(Command(marker), planted)
    (checkpoint / place.relative_path).write_bytes(bytes(place.offset) + planted.read_bytes())
    place.length = planted.stat().st_size
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    sign(checkpoint)
    with pytest.raises(ValueError, match=r"(?i)weights_only|unsupported"):
        load(checkpoint)
    assert not marker.exists()


def test_items_that_torch_would_unpickle_freely_are_refused(checkpoint: Path) -> None:
    metadata = read_metadata(checkpoint / ".metadata")
    metadata.state_dict_metadata["master/w"] = BytesStorageMetadata()
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    sign(checkpoint)
    with pytest.raises(ValueError, match="BytesStorageMetadata"):
        load(checkpoint)


@pytest.mark.parametrize("name", ["../step_00000010/__0_0.distcp", "/etc/passwd", "a/__0_0.distcp"])
def test_data_outside_of_the_folder_is_refused(checkpoint: Path, name: str) -> None:
    metadata = read_metadata(checkpoint / ".metadata")
    for place in metadata.storage_data.values():
        place.relative_path = name
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    sign(checkpoint)
    with pytest.raises(ValueError, match="is not plain data in a file of the same folder"):
        load(checkpoint)


@pytest.mark.parametrize("field", ["offset", "length"])
@pytest.mark.parametrize("value", [-1, 10**15, True, "1", None], ids=str)
def test_places_outside_of_their_file_are_refused(checkpoint: Path, field: str, value: Any) -> None:
    metadata = read_metadata(checkpoint / ".metadata")
    setattr(next(iter(metadata.storage_data.values())), field, value)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    sign(checkpoint)
    with pytest.raises(ValueError, match=r"is damaged: .* is at bytes|has no attribute"):
        load(checkpoint)


def test_a_pickle_that_asks_for_all_memory_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"\x80\x05\x8d" + (2**62).to_bytes(8, "little") + b".")
    with pytest.raises(ValueError, match=r"is damaged|is refused"):
        read_metadata(tmp_path / ".metadata")


def test_plain_torch_still_reads_what_is_written(checkpoint: Path) -> None:
    state = {"master/w": torch.zeros(12)}
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    assert state["master/w"][3] == 2003.0


def damage(folder: Path, draw: random.Random) -> str:
    """Do one thing to a folder of checkpoints that a disk, a copy or a person could have done."""
    path = folder / draw.choice(["step_00000010", "step_00000020", "step_00000020"])
    file = path / draw.choice(["manifest.json", ".metadata", "__0_0.distcp"])
    data = bytearray(file.read_bytes())
    place = draw.randrange(len(data))
    match draw.choice(["flip", "cut", "zero", "remove", "empty", "rename", "swap", "folder", "append"]):
        case "flip":
            data[place] ^= 1 << draw.randrange(8)
            file.write_bytes(data)
        case "cut":
            file.write_bytes(data[:place])
        case "zero":
            file.write_bytes(data[:place] + bytes(len(data) - place))
        case "remove":
            file.unlink()
        case "empty":
            shutil.rmtree(path)
            path.mkdir()
        case "rename":
            path.rename(folder / f"step_{draw.randrange(1, 60):08d}.{draw.choice(['tmp', 'old'])}")
        case "swap":
            other = (
                path.with_name("step_00000010" if path.name.endswith("20") else "step_00000020") / file.name
            )
            file.write_bytes(other.read_bytes())
        case "folder":
            file.unlink()
            file.mkdir()
        case "append":
            file.write_bytes(data + b"\0" * draw.randrange(1, 9))
    return file.name


def newest_of_many(context: ParallelContext, good: Path, folder: Path) -> list[str]:
    """For each damaged copy, what the store makes of it: a step with the right weights, or a sentence."""
    answers = []
    for case in range(FUZZ_CASES):
        draw = random.Random(case)
        copy = Path(shutil.copytree(good, folder / str(case)))
        for _ in range(draw.randint(1, 3)):
            try:
                damage(copy, draw)
            except (FileNotFoundError, IsADirectoryError):
                continue
        store = CheckpointStore(copy, CheckpointConfig(), group=context.checkpoint_group)
        try:
            found = store.newest()
        except RunError as error:
            answers.append(str(error))
            continue
        if found is None:
            answers.append("none")
            continue
        cuts = even_cuts(1)
        state = empty_state(0, cuts)
        step = store.load(found[0], state, settings=SETTINGS).step
        weights = {name: piece.values.tolist() for name, piece in state.items()}
        assert weights == expected_state(0, cuts, step=step), (case, found)
        answers.append(f"step {step}")
        shutil.rmtree(copy)
    return answers


@pytest.mark.slow
def test_damaged_folders_give_the_older_good_checkpoint_or_a_sentence(
    two_steps: Path, tmp_path: Path
) -> None:
    (answers,) = run_on_ranks(newest_of_many, 1, two_steps, tmp_path)
    kinds = [
        next((kind for kind in ("step 10", "step 20", "damaged", "none") if kind in text), text)
        for text in answers
    ]
    assert len(kinds) == FUZZ_CASES and set(kinds) <= {"step 10", "step 20", "damaged", "none"}
    assert kinds.count("step 10") > 50 and kinds.count("damaged") > 5
