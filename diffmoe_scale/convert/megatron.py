"""A distributed checkpoint of Megatron: what `megatron.core.dist_checkpointing.load` reads, and back.

It is torch's distributed format, with two small files beside it. Experts have the names and shapes of
Megatron's grouped ones, stacked, so that any layout of expert-parallel ranks reads its own; all else keeps
our names.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, SavePlan
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from diffmoe_scale.checkpoint.files import Writer, first_reason
from diffmoe_scale.checkpoint.stored import KEPT, StoredWeights, export_metadata, stored_of_metadata
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.convert.megatron_reader import MegatronReader
from diffmoe_scale.convert.torch_file import load_plain

CONFIG = "metadata.json"
COMMON = "common.pt"
BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
OURS = "diffmoe_scale"
"""The key of COMMON with what an export's metadata say, and the family of the weights."""
EXPERT = re.compile(r"transformer\.blocks\.(\d+)\.feed_forward\.experts\.(\d+)\.([wb])_(in|out)")
STACKED = re.compile(r"decoder\.layers\.(\d+)\.mlp\.experts\.experts\.linear_fc([12])\.(weight|bias)")
ROUTER = re.compile(r"transformer\.blocks\.(\d+)\.feed_forward\.router\.weight")
THEIR_ROUTER = re.compile(r"decoder\.layers\.(\d+)\.mlp\.router\.weight")


def is_megatron(path: Path) -> bool:
    """Whether a path is such a folder."""
    return (path / CONFIG).is_file() and (path / COMMON).is_file()


def write_megatron(stored: StoredWeights, path: Path) -> None:
    """Write one family of weights with its thresholds as a new folder; one tensor, or one expert's, is in
    memory at a time.

    Raises: ValueError for more families, which have the same names there; OSError.
    """
    families = [name for name in stored.families if name != "buffer"]
    if len(families) != 1:
        raise ValueError(
            f"a Megatron checkpoint holds one kind of weights, not {', '.join(families)}: give --weights"
        )
    path.mkdir()
    pieces: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in stored.tensors.items():
        own = name.removeprefix(f"{families[0]}/")
        place, expert = to_megatron(own)
        pieces.setdefault(place, {})[expert] = tensor
    write_pieces(path, pieces)
    torch.save({OURS: export_metadata(stored) | {"family": families[0]}}, path / COMMON)
    (path / CONFIG).write_text(json.dumps(BACKEND), encoding="utf-8")


def write_pieces(path: Path, pieces: Mapping[str, Mapping[int, LazyTensor]]) -> None:
    """Tensors in torch's distributed format, by name: whole (at -1), or one piece for each place of the first
    dimension. One piece is in memory at a time, and has a file of its own. Raises: OSError."""
    writer = Writer(path, single_file_per_rank=False, sync_files=True)
    try:
        dcp.save({}, storage_writer=writer, planner=_Pieces(pieces), no_dist=True)
    except CheckpointException as error:  # a BaseException in torch
        reason = next((reason for reason, _ in error.failures.values()), None)
        raise reason if isinstance(reason, OSError) else OSError(first_reason(error)) from error


def to_megatron(name: str) -> tuple[str, int]:
    """Megatron's name, and the expert's place in that tensor, or -1 for one that is a whole tensor."""
    if found := EXPERT.fullmatch(name):
        block, expert, letter, side = found.groups()
        kind, number = {"w": "weight", "b": "bias"}[letter], {"in": 1, "out": 2}[side]
        return f"decoder.layers.{block}.mlp.experts.experts.linear_fc{number}.{kind}", int(expert)
    if found := ROUTER.fullmatch(name):
        return f"decoder.layers.{found[1]}.mlp.router.weight", -1
    return name, -1


def from_megatron(name: str) -> str:
    """Our name; of stacked experts with `{}` for the expert."""
    if found := STACKED.fullmatch(name):
        block, number, kind = found.groups()
        part = f"{kind[0]}_{'in' if number == '1' else 'out'}"
        return f"transformer.blocks.{block}.feed_forward.experts.{{}}.{part}"
    if found := THEIR_ROUTER.fullmatch(name):
        return f"transformer.blocks.{found[1]}.feed_forward.router.weight"
    return name


def open_megatron(path: Path, settings: Sequence[str] = ()) -> StoredWeights:
    """The weights of a folder that this program wrote.

    Raises: ValueError if it is another program's, or damaged.
    """
    common = load_plain(path / COMMON)
    metadata = common.get(OURS) if isinstance(common, Mapping) else None
    if not isinstance(metadata, Mapping) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(
            f"{path} is a checkpoint of Megatron that this program did not write: {COMMON} has no "
            f"{OURS!r}, which says what model it is"
        )
    reader = MegatronReader(path)
    family = metadata.get("family", "ema")
    tensors: dict[str, LazyTensor] = {}
    for name in reader.names:
        ours = from_megatron(name)
        start = "" if name.startswith(KEPT) else f"{family}/"
        if STACKED.fullmatch(name):
            for expert in range(reader.shape(name)[0]):
                tensors[start + ours.format(expert)] = reader.piece(name, expert)
        else:
            tensors[start + ours] = reader.piece(name)
    return stored_of_metadata(path, metadata, dict(sorted(tensors.items())), settings)


class _Pieces(DefaultSavePlanner):
    """Tensors by name, whole (at -1) or one piece for each place of the first dimension; read when they are
    written."""

    def __init__(self, pieces: Mapping[str, Mapping[int, LazyTensor]]) -> None:
        super().__init__(flatten_state_dict=False)
        self.pieces = pieces
        self.by_index: dict[tuple[str, int], LazyTensor] = {}

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, parts in self.pieces.items():
            for number, (place, tensor) in enumerate(sorted(parts.items())):
                items.append(_write_item(name, number, place, tensor, len(parts)))
                self.by_index[name, number] = tensor
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        number = write_item.index.index
        assert number is not None
        tensor = self.by_index[write_item.index.fqn, number].read()
        chunk = write_item.tensor_data
        assert chunk is not None
        return tensor.reshape(chunk.chunk.sizes)


def _write_item(name: str, number: int, place: int, tensor: LazyTensor, count: int) -> WriteItem:
    """One tensor, or the piece at `place` of `count`."""
    sizes = tensor.shape if place < 0 else (1, *tensor.shape)
    offsets = torch.Size([max(place, 0) if dim == 0 else 0 for dim in range(len(sizes))])
    whole = torch.Size(tensor.shape if place < 0 else (count, *tensor.shape))
    return WriteItem(
        index=MetadataIndex(name, offsets, number),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=torch.Size(sizes)),
            properties=TensorProperties(dtype=tensor.dtype),
            size=whole,
        ),
    )
