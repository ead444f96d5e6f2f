"""The places of a run directory: the interface between training, sampling, evaluation and report."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """Paths below one run's folder; nothing is created by naming it."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings, which alone start the run again."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def tokenizer(self) -> Path:
        """The sentencepiece model trained on the run's captions."""
        return self.path / "tokenizer.model"

    @property
    def checkpoints(self) -> Path:
        """Holds `step_00001000/` folders, each complete or ignored."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def evaluation(self) -> Path:
        """Scores and expert statistics of the last evaluation."""
        return self.path / "evaluation.json"

    @property
    def gamma(self) -> Path:
        """The threshold of `sampling.selection=interval` that was found last, and how."""
        return self.path / "gamma.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"
