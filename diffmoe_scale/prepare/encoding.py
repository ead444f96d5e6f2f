"""From shards of pictures to shards of features: what tools/cache_features.py does with an autoencoder and a
text encoder."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from diffmoe_scale.config.check import RunError
from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import FEATURE_SUFFIX, CaptionFeatures, FeatureSet, FeatureSource
from diffmoe_scale.data.order.plan import Chunk
from diffmoe_scale.data.reading.batch import Sample, to_unit_range
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.data.reading.source import SampleSource
from diffmoe_scale.data.shards.index import Span
from diffmoe_scale.files import replace_file
from diffmoe_scale.prepare.encoders import Encoders
from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.publish import write_shard
from diffmoe_scale.unicode import safe_member_name

KEPT_SUFFIXES = ("txt", "json", "cls")
LEFT_OUT = "left_out"
"""Folder of an unfinished set: what each of its shards lacks."""
UNUSABLE = "sample whose picture cannot be used"
NOT_FINITE = "sample with features that are not finite numbers"
ESTIMATED_SAMPLES = 2000


@dataclass(frozen=True)
class FeatureWriter:
    """Shards of pictures, what computes their features (`batch` pictures at once), and what these are."""

    reader: Reader
    encoders: Encoders
    features: FeatureSet
    batch: int
    rank: int = 0

    def estimate_size(self) -> float:
        """Bytes of all shards: those of some samples spread over the set, computed with their real captions
        and empty features."""
        counts, places = self.reader.catalog.counts, self.reader.places(ESTIMATED_SAMPLES)
        mean = sum(self._estimate_sample(shard, row) for shard, row in places) / len(places)
        # A tar file ends with two empty blocks and is filled up to 10,240 bytes.
        return sum(math.ceil((samples * mean + 1024) / 10240) * 10240 for samples in counts)

    def _estimate_sample(self, shard: int, row: int) -> int:
        reader, source = self.reader, self.features.source
        members = reader.catalog.index(shard).members(row)
        captions = self._empty_captions(shard, members)
        size = reader.image_size(shard, row)
        data = pack_sample(
            torch.zeros(source.num_views, *source.latent_shape(size)),
            captions,
            [1.0] * len(captions),
            original=size,
            crop=(0, 0),
            precision=source.precision,
            teacher_VNZ=torch.zeros(source.num_views, *source.teacher_shape(size))
            if source.teacher
            else None,
        )
        sizes = [len(data)] + [members[suffix].size for suffix in KEPT_SUFFIXES if suffix in members]
        return sum(512 + math.ceil(size / 512) * 512 for size in sizes)

    def _empty_captions(self, shard: int, members: dict[str, Span]) -> list[tuple[CaptionFeatures, ...]]:
        """Features of zeros, as long as those of a sample's captions will be."""
        texts = [caption for caption, _ in self._captions(shard, members)] if self.features.empty else []
        if not texts:
            return []
        streams = [
            _zeros(encoder.mask_of(encoder.tokenize(texts)).sum(1).tolist(), empty)
            for encoder, empty in zip(self.encoders.text.frozen, self.features.empty, strict=True)
        ]
        return list(zip(*streams, strict=True))

    def _captions(self, shard: int, members: dict[str, Span]) -> list[tuple[str, float]]:
        """Captions of a sample with the weights that they are drawn by."""
        return self.reader.source.files.captions(shard, members, self.reader.config.caption_weights)

    def write(self, folder: Path, numbers: Sequence[int]) -> Iterator[Path]:
        """Write the shards of these numbers, and give the path of each.

        Batches are of one size, and shards keep the order of their samples: in a window of as many neighbours
        as fill a batch of each size. What is left out of a shard is written to LEFT_OUT in the folder.
        """
        reader, workers = self.reader, self.reader.config.workers
        counts = reader.catalog.counts
        ends, window = list(accumulate(counts)), self.batch * len(reader.sizes)
        rows = {number: range(ends[number] - counts[number], ends[number]) for number in numbers}
        windows = {
            number: [several[first : first + window] for first in range(0, len(several), window)]
            for number, several in rows.items()
        }
        chunks = (
            chunk for several in windows.values() for samples in several for chunk in self._chunks(samples)
        )
        loader = DataLoader(
            _Pictures(reader.fixed_source),
            batch_size=None,
            sampler=chunks,
            num_workers=workers,
            multiprocessing_context="forkserver" if workers else None,
        )
        total = sum(map(len, rows.values()))
        with tqdm(total=total, unit="sample", disable=None, desc=f"rank {self.rank}") as progress:
            batches = iter(loader)
            for number, several in windows.items():
                path = folder / reader.catalog.paths[number].name
                write_shard(path, self._encode_shard(path, several, batches, progress))
                yield path

    def _chunks(self, numbers: range) -> Iterator[Chunk]:
        for size, found in self.reader.fixed_groups(numbers).items():
            for first in range(0, len(found), self.batch):
                yield Chunk(found[first : first + self.batch], size)

    def _encode_shard(
        self, path: Path, windows: Sequence[range], batches: Iterator[list[Sample]], progress: tqdm
    ) -> Iterator[dict[str, object]]:
        """Members of the samples of a shard in the order of their numbers."""
        losses, count_written = Losses(), 0
        for numbers in windows:
            encoded: dict[int, dict[str, object]] = {}
            count = len(numbers)
            while count:
                samples = next(batches)
                count -= len(samples)
                progress.update(len(samples))
                encoded |= self._encode(samples, losses)
            yield from (encoded[number] for number in sorted(encoded))
            count_written += len(encoded)
        if losses.counts[NOT_FINITE] and not count_written:
            raise RunError(
                f"no sample of {path.name} has features that are finite numbers; expected them of most "
                "pictures: try autoencoder.precision=fp32, or another precision of the encoder that overflows"
            )
        if losses.counts:
            (path.parent / LEFT_OUT).mkdir(exist_ok=True)
            data = json.dumps(losses.to_json()).encode()
            replace_file(path.parent / LEFT_OUT / f"{path.name}.json", data)

    def _encode(self, samples: Sequence[Sample], losses: Losses) -> Iterator[tuple[int, dict[str, object]]]:
        """Number and members of the samples of one batch; what cannot be used is counted and named."""
        reader, source, good = self.reader, self.features.source, {}
        for sample in samples:
            if reason := _unusable(sample, source):
                losses.add(UNUSABLE, sample.key, reason)
            elif sample.picture is not None:
                good[sample.index] = sample.picture
        if not good:
            return
        pixels_BHWC = torch.from_numpy(np.stack([picture.pixels_HWC for picture in good.values()]))
        images_BCHW = to_unit_range(pixels_BHWC)
        latents_BVCHW = self.encoders.views(images_BCHW, source.num_views)
        teacher_BVNZ = self.encoders.teacher_views(images_BCHW, latents_BVCHW, source)
        places = [reader.fixed_source.order.locate(number) for number in good]
        members = [reader.catalog.index(shard).members(row) for shard, row in places]
        texts = [
            self._captions(shard, spans) if self.encoders.text.frozen else []
            for (shard, _), spans in zip(places, members, strict=True)
        ]
        flat = [text for several in texts for text, _ in several]
        encoded = iter(self.encoders.captions(flat, precision=source.precision))
        for (number, picture), (shard, row), spans, several, latents_VCHW, teacher_VNZ in zip(
            good.items(), places, members, texts, latents_BVCHW, teacher_BVNZ, strict=True
        ):
            key = reader.catalog.index(shard).key(row)
            captions = list(itertools.islice(encoded, len(several)))
            if not _are_finite(latents_VCHW, teacher_VNZ, captions):
                losses.add(NOT_FINITE, key)
                continue
            data = pack_sample(
                latents_VCHW,
                captions,
                [weight for _, weight in several],
                original=picture.original,
                crop=picture.crop,
                precision=source.precision,
                teacher_VNZ=teacher_VNZ,
            )
            yield (
                number,
                {
                    "__key__": safe_member_name(key),
                    FEATURE_SUFFIX: data,
                    **self._kept(shard, spans),
                },
            )

    def _kept(self, shard: int, members: dict[str, Span]) -> dict[str, bytes]:
        """Captions and label as they are."""
        read = self.reader.source.files.read
        return {suffix: read(shard, members[suffix]) for suffix in KEPT_SUFFIXES if suffix in members}


def _are_finite(
    latents_VCHW: Tensor, teacher_VNZ: Tensor | None, captions: Sequence[Sequence[CaptionFeatures]]
) -> bool:
    tensors = [latents_VCHW, teacher_VNZ]
    tensors += [
        tensor for streams in captions for found in streams for tensor in (found.tokens_LT, found.pooled_P)
    ]
    return all(bool(tensor.float().isfinite().all()) for tensor in tensors if tensor is not None)


def _zeros(lengths: Sequence[int], empty: CaptionFeatures) -> list[CaptionFeatures]:
    zeros_LT = torch.zeros(max(lengths), empty.tokens_LT.shape[1], dtype=empty.tokens_LT.dtype)
    return [CaptionFeatures(zeros_LT[:length], empty.pooled_P) for length in lengths]


def _unusable(sample: Sample, source: FeatureSource) -> str:
    """Why there can be no features of a sample; empty if there can."""
    if sample.failure is not None:
        return sample.failure.reason
    assert sample.picture is not None
    height, width = sample.picture.original
    # Its bucket is chosen by its header; that of its features will be by its pixels. A mark behind the pixels
    # of a PNG can turn it.
    if sample.picture.pixels_HWC.shape[:2] == source.image_size_of(sample.picture.original):
        return ""
    return f"decoded it is {width} x {height}, of another bucket than its header says; write the file anew"


@dataclass(frozen=True)
class _Pictures(Dataset[list[Sample]]):
    """The decoded samples of some numbers in a size."""

    source: SampleSource

    def __getitem__(self, chunk: Chunk) -> list[Sample]:
        return [self.source.load(number, chunk.size) for number in chunk.numbers]
