"""The places of a run directory: the interface between training, sampling, evaluation and report."""

from dataclasses import dataclass
from pathlib import Path
from typing import IO

from diffmoe_scale.lock import hold


@dataclass(frozen=True)
class RunDirectory:
    """Paths below one run's folder; nothing is created by naming it."""

    path: Path

    @property
    def lock(self) -> Path:
        """Held by the process that trains here, and says who that is."""
        return self.path / "lock"

    @property
    def ended(self) -> Path:
        """What `--start-id` was of the start that trained to the end last, or, with ` stopped` after it, that
        a signal or RUN/stop ended."""
        return self.path / "ended"

    @property
    def saved(self) -> Path:
        """The step of the newest checkpoint that was ever complete: {"step": N}."""
        return self.path / "saved.json"

    @property
    def config(self) -> Path:
        """The resolved settings, which alone start the run again."""
        return self.path / "config.yaml"

    @property
    def shards(self) -> Path:
        """The shards of the last start, of training and of validation: what they held."""
        return self.path / "shards.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def experts(self) -> Path:
        """Which experts take the same tokens, and with what weight, at the last log step."""
        return self.path / "experts.json"

    @property
    def stop_request(self) -> Path:
        """Whoever makes this file asks the run to save and end, as by SIGUSR1."""
        return self.path / "stop"

    @property
    def profile_request(self) -> Path:
        """Whoever makes this file asks for a trace of the next steps."""
        return self.path / "profile"

    @property
    def traces(self) -> Path:
        """Traces of torch's profiler."""
        return self.path / "traces"

    def stacks(self, rank: int) -> Path:
        """Where a rank stood that made no step for long."""
        return self.path / "stacks" / f"rank_{rank}.txt"

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
    def calibrations(self) -> Path:
        """Thresholds for `sampling.capacity`, a file for each checkpoint, capacity and way of sampling."""
        return self.path / "calibrations"

    @property
    def sweeps(self) -> Path:
        """Quality and cost by capacity, a file for each sweep."""
        return self.path / "sweeps"

    @property
    def report(self) -> Path:
        return self.path / "report.html"


def run_of_config(file: Path) -> RunDirectory | None:
    """The run that a config file was written by; None for a file that lies elsewhere."""
    directory = RunDirectory(file.parent)
    is_run = directory.metrics.exists() or directory.saved.exists() or directory.checkpoints.exists()
    return directory if file.name == directory.config.name and is_run else None


def run_of_checkpoint(path: Path) -> RunDirectory | None:
    """The run that has `path` among its checkpoints; None for another path, such as that of a run which
    itself lies in a folder named `checkpoints`. Weights that were exported are to be ruled out before."""
    folder = path.absolute().parent
    is_run = RunDirectory(path).config.is_file()
    directory = RunDirectory(folder.parent)
    return directory if folder == directory.checkpoints and not is_run else None


def hold_lock(directory: RunDirectory) -> IO[str] | None:
    """Keep other starts out of a run directory for as long as the returned file is open. For the main rank.

    Raises: ValueError if another process trains there; OSError if the directory cannot be written to.
    """
    return hold(directory.lock, setting="run.directory", work="trains")
