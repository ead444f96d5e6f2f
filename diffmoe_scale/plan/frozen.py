"""Bytes of frozen networks: text encoders, the autoencoder, and the encoder of alignment with its projector;
by the headers of their weight files."""

import math
from pathlib import Path

from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.text import LOCAL_FOLDER
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.plan.alignment import alignment_bytes

BYTES = {"bf16": 2, "fp32": 4}
HEADER_LIMIT = 100 * 2**20


def frozen_bytes(config: Config) -> int | None:
    """Of a GPU, with all layers; None where weights are not on this machine. Features that shards hold need
    neither network."""
    places = []
    if config.autoencoder.kind != "pixels":
        places.append((config.autoencoder.path, config.autoencoder.precision))
    if config.model.conditioning == "text":
        places += [
            (encoder.path.removeprefix(LOCAL_FOLDER), encoder.precision)
            for encoder in config.text.listed()
            if encoder.kind != "sentencepiece"
        ]
    if config.alignment.encoder:
        places.append((config.alignment.encoder, config.alignment.precision))
    found: list[int | None] = [alignment_bytes(config)]
    found += [_weights(Path(path), BYTES[precision]) for path, precision in places]
    return None if None in found else sum(size for size in found if size is not None)


def _weights(path: Path, bytes_each: int) -> int | None:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    counts = [_count(file) for file in files if file.suffix == ".safetensors"]
    return sum(counts) * bytes_each if counts else None


def _count(file: Path) -> int:
    """Numbers in a safetensors file: its JSON header has the shape of every tensor."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > HEADER_LIMIT:
            raise ValueError(f"{file} is no safetensors file: its header would have {length} bytes")
        try:
            header = parse_json(stream.read(length))
            tensors = (entry for name, entry in header.items() if name != "__metadata__")
            return sum(math.prod(entry["shape"]) for entry in tensors)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from error
