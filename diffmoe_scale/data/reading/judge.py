"""What was wrong with the samples that a rank was given: counted, logged once a kind, and limited."""

import logging
from collections import Counter
from collections.abc import Iterator

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.data.reading.batch import FAILURES, NOTES, UNREADABLE_JSON, Batch, Note
from diffmoe_scale.unicode import TEXT_NOTES
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

LOGGED_FAILURES = 10
# A note costs no sample: one line of each kind says that there are some.
LOGGED_NOTES = 1
JUDGED_SAMPLES = 200
WARNED_OF = ("long_caption", "retry", UNREADABLE_JSON, *TEXT_NOTES)


class Judge:
    """Counts of this rank. It lives where training does; samples may be read in other processes."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.read_samples = 0
        """Samples that this rank was given."""
        self.counts: Counter[str] = Counter()
        """Samples by what was wrong with them (FAILURES, these have weight 0) or was dealt with (NOTES)."""

    @property
    def bad_samples(self) -> int:
        """Samples of weight 0 so far."""
        return sum(self.counts[kind] for kind in FAILURES)

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches. Raises: RunError when more samples fail than data.max_bad_fraction."""
        for batch in batches:
            self.read_samples += len(batch.keys)
            for failure in batch.failures:
                self.counts[failure.kind] += 1
                self._log(
                    failure.kind,
                    f"sample {failure.key}: {failure.reason}; it has weight 0",
                    limit=LOGGED_FAILURES,
                )
            for key in batch.uncaptioned:
                self.counts["caption"] += 1
                self._log(
                    "caption", f"sample {key}: no caption; trained on the empty one", limit=LOGGED_NOTES
                )
            for note in batch.notes:
                self.count_note(note)
            self._limit()
            yield batch

    def count_note(self, note: Note) -> None:
        """Count something that was dealt with; the first of a kind is logged, of transfers more."""
        self.counts[note.kind] += 1
        level = logging.WARNING if note.kind in WARNED_OF else logging.INFO
        limit = LOGGED_FAILURES if note.kind == "retry" else LOGGED_NOTES
        self._log(note.kind, f"{NOTES[note.kind]}: {note.text}", limit=limit, level=level)

    def _limit(self) -> None:
        limit = self.config.max_bad_fraction
        if self.read_samples >= JUDGED_SAMPLES and self.bad_samples > limit * self.read_samples:
            raise RunError(
                f"unusable are {self.bad_samples} of {counted(self.read_samples, 'sample')} "
                f"({dict(self.counts)}), more than data.max_bad_fraction ({limit}); the log names them; "
                "repair the shards or raise the limit"
            )

    def _log(self, kind: str, sentence: str, *, limit: int, level: int = logging.WARNING) -> None:
        if self.counts[kind] <= limit:
            is_last = self.counts[kind] == limit
            logger.log(level, "%s%s", sentence, "; more of this kind are only counted" if is_last else "")
