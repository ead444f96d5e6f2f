"""What a suite of prompts is to the harness: prompts, where their pictures go, and how they are scored.

P prompts; a prompt gets `copies` pictures, and picture `place` = prompt * copies + copy.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any  # JSON values

from torch import Tensor


@dataclass(frozen=True)
class SuitePrompt:
    """A prompt with what its benchmark says of it; `group` is the part of the suite that it belongs to."""

    text: str
    group: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What a judge is asked about a picture.

    `answers` are the spellings of the right answer, whose probability counts. Without them the judge's words
    are the result (text that it reads in the picture).
    """

    name: str
    text: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a judge said, and the probability that it gave to the right answer; None where there is none."""

    text: str
    probability: float | None = None


@dataclass(frozen=True)
class PictureScore:
    """The score of a picture, 0 to 1, and scores of its parts (questions of a kind, say) by name."""

    value: float
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Prompts whose pictures are numbered files, without a score: what other suites replace in part."""

    kind: str
    name: str
    prompts: Sequence[SuitePrompt]
    copies: int = 1

    score_name = "score"
    """What a score is called in tables."""
    means_of_groups = False
    """Whether the score of the suite is the mean over groups, not over prompts."""

    @property
    def count(self) -> int:
        return len(self.prompts) * self.copies

    @property
    def fingerprint(self) -> str:
        """Of everything that decides what is drawn and what a picture must show."""
        content = [self.kind, self.copies, [asdict(prompt) for prompt in self.prompts]]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def prompt_of(self, place: int) -> SuitePrompt:
        return self.prompts[place // self.copies]

    def noise_of(self, place: int) -> int:
        """The number of the picture's noise among those of one seed."""
        return place

    def file_of(self, place: int) -> str:
        """The picture's file below the folder of pictures."""
        return f"{place:06d}.png"

    def export(self, folder: Path) -> str:
        """Write what the benchmark's own code needs beside the pictures, which are all there; what the user
        does then, "" for nothing. Raises: OSError, ValueError for pictures that cannot be read."""
        return ""

    def check(self, images_BCHW: Tensor, places: Sequence[int]) -> list[float] | None:
        """Scores of pictures in [-1, 1] by an exact rule; None without one."""
        return None

    def is_scored(self, prompt: int) -> bool:
        """Whether the score counts this prompt: some benchmarks have prompts that others score."""
        return True

    def questions(self, prompt: int) -> list[Question]:
        """What a judge is asked about each picture of a prompt; [] where no judge is needed."""
        return []

    def score_answers(self, prompt: int, answers: Mapping[str, Answer]) -> PictureScore:
        """The score of a picture from the answers to all `questions`, by their names."""
        raise AssertionError("a suite without questions")

    def read_results(self, folder: Path) -> dict[int, PictureScore] | None:
        """Scores by place that the benchmark's own code wrote into the folder above the pictures; None
        without its file.

        Raises: ValueError for a file that is damaged, incomplete or about other pictures.
        """
        return None
