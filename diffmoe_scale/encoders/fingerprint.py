"""Which network made something: a short hash of its weights and of what else decides its output.

To hash many gigabytes takes long, so the hash is kept in a small file beside the weights.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from torch import nn

from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json

logger = logging.getLogger(__name__)

COARSE_CLOCK_S, FINE_CLOCK_S = 2.0, 0.05
"""File systems count time in steps: a file that was written within one may be written again with the same
time."""


def fingerprint(module: nn.Module, *settings: object) -> str:
    """16 hexadecimal digits of names, shapes and values of a module's state, and of the settings. The device
    does not matter."""
    digest = blake2b(repr(settings).encode(), digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class WeightFiles:
    """The files that a frozen network is loaded from. Make it before they are read: a file that changes after
    that is noticed."""

    def __init__(self, files: Sequence[Path], *, record: Path) -> None:
        self.files = sorted(files)
        self.record = record
        self.stamp = self._look()

    def _look(self) -> dict[str, list[int]]:
        """Size, and nanoseconds of the last change of content and of any change, by name."""
        found = {file.name: file.stat() for file in self.files}
        return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in found.items()}

    def fingerprint(self, module: nn.Module, *settings: object) -> str:
        """`fingerprint` of the module that was loaded from these files."""
        return self.remember(lambda: fingerprint(module, *settings), *settings)

    def remember(self, compute: Callable[[], str], *settings: object) -> str:
        """The fingerprint of these settings: the recorded one if the files are those of the record, else
        computed and recorded where the folder can be written to."""
        recorded = self._recorded()
        key = repr(settings)
        if key in recorded:
            return recorded[key]
        value = compute()
        self._keep(recorded | {key: value})
        return value

    def _recorded(self) -> dict[str, str]:
        """Fingerprints by settings; none if anything is wrong with the record."""
        try:
            record = parse_json(self.record.read_text(encoding="utf-8"))
            fingerprints: dict[str, str] = record["fingerprints"]
            is_good = record == self._record_of(fingerprints)
        except (OSError, ValueError, LookupError, TypeError):
            return {}
        return fingerprints if is_good else {}

    def _record_of(self, fingerprints: dict[str, str]) -> dict[str, object]:
        """What stands in the file, with a checksum: a flipped bit must not become another fingerprint."""
        content = {"files": self.stamp, "fingerprints": fingerprints}
        checksum = blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
        return content | {"checksum": checksum}

    def _keep(self, fingerprints: dict[str, str]) -> None:
        newest_ns = max(max(times) for _, *times in self.stamp.values())
        clock_s = COARSE_CLOCK_S if newest_ns % 10**9 == 0 else FINE_CLOCK_S
        try:
            if self._look() == self.stamp and abs(time.time() - newest_ns / 1e9) > clock_s:
                replace_file(self.record, json.dumps(self._record_of(fingerprints), indent=1).encode())
        except OSError as error:
            logger.info("%s is not kept (%s): the weights are hashed at each start", self.record, error)
