"""Where log lines go: the console, and RUN/log.txt for the main rank."""

import logging
import re
import sys
import warnings
from pathlib import Path

from diffmoe_scale.telemetry.appended_file import AppendedFile

OWN_LOGGERS = ("diffmoe_scale", "__main__")
NOISE = (
    "Transformer Engine and Apex are not installed",  # megatron-core 0.16.1, in four places on import
    "full scope is deprecated",  # megatron-core 0.16.1, of its own default
    "torch.distributed is disabled",  # torch.distributed.checkpoint, when one process reads
    "`torch.distributed.all_gather_into_tensor` is deprecated",  # torch 2.14, of deepspeed 0.19.8
    "No CUDA runtime is found",  # torch 2.14, by its logger, where there is an nvcc and no GPU
    "Setting accelerator to CPU",  # deepspeed 0.19.8, by its logger; the first line of a run names its device
)
"""Beginnings of packages' warnings about what is meant to be so."""


def silence_packages() -> None:
    """To be called before packages are imported."""
    for beginning in NOISE:
        warnings.filterwarnings("ignore", message=re.escape(beginning))
    for name in ("torch.utils.cpp_extension", "DeepSpeed"):
        logging.getLogger(name).addFilter(_is_no_noise)


def setup_tool_logging() -> None:
    """Our INFO lines alone and as they are, for commands without a run's log. To be called before packages
    are imported."""
    silence_packages()
    logging.basicConfig(format="%(message)s")
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NOISE)


class ConsoleFormatter(logging.Formatter):
    """`12:00:00 WARNING message`, with the number of a rank that is not the main one; an error is the line
    `error: message`, as every command says it."""

    def __init__(self, *, rank: int) -> None:
        origin = f"rank {rank} " if rank else ""
        super().__init__(f"%(asctime)s %(levelname)s {origin}%(message)s", "%H:%M:%S")
        self._of_errors = logging.Formatter(f"error: {origin}%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return self._of_errors.format(record) if record.levelno >= logging.ERROR else super().format(record)


class ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Writes to stderr above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            from tqdm import tqdm  # here: the doctor runs where packages are missing

            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # a closed console, or words that do not fit, of whatever package
            self.handleError(record)


def setup_logging(run_directory: Path, *, rank: int) -> None:
    """Send our INFO and others' WARNING lines of rank 0 to console and RUN/log.txt, and of other ranks
    WARNING with their rank to the console.

    Replaces earlier handlers, so a second call changes the place and doubles nothing. Python warnings become
    log lines, on rank 0 only, since the other ranks repeat them.
    """
    is_main = rank == 0
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    console = ConsoleHandler()
    console.setFormatter(ConsoleFormatter(rank=rank))
    root.addHandler(console)
    if is_main:
        run_directory.mkdir(parents=True, exist_ok=True)
        # Left open: lines of the interpreter's last moments belong into it, too.
        file = logging.StreamHandler(AppendedFile(run_directory / "log.txt"))
        file.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")
        )
        root.addHandler(file)
    root.setLevel(logging.WARNING)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if is_main else logging.WARNING)
    _adopt_deepspeed_logger()
    warnings.formatwarning = _format_warning
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.WARNING if is_main else logging.ERROR)


def _adopt_deepspeed_logger() -> None:
    """DeepSpeed's logger comes with a handler on stdout and does not propagate, so its warnings would miss
    log.txt."""
    logger = logging.getLogger("DeepSpeed")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """One line, without the source line that Python adds."""
    return f"{category.__name__}: {message} ({filename}:{lineno})"
