"""RUN/report.html: what a run did, on one page that needs nothing else."""

import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from diffmoe_scale.config.load import load_run_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.evaluation.results import read_evaluation
from diffmoe_scale.files import replace_file
from diffmoe_scale.report.capacity import capacity_section, newest_sweep
from diffmoe_scale.report.health import health_section, read_together
from diffmoe_scale.report.html import Markup, element, join, page
from diffmoe_scale.report.pictures import samples_section
from diffmoe_scale.report.scores import experts_section, scores_section
from diffmoe_scale.report.summary import settings_section, status_section
from diffmoe_scale.report.training import read_records, training_section
from diffmoe_scale.report.troubles import troubles_section

logger = logging.getLogger(__name__)

Found = TypeVar("Found")


def write_report(run_directory: Path) -> Path:
    """Write report.html into a run directory and return its path.

    Parts that are missing are named with the command that makes them; a part that is damaged is named and
    left out, so that whatever a run left has a report.

    Raises: ValueError if the directory does not exist, OSError if the page cannot be written.
    """
    directory = RunDirectory(run_directory)
    if not run_directory.is_dir():
        raise ValueError(
            f"{run_directory} is no directory; expected a run directory (run.directory of a training)"
        )
    records = _read(read_records, directory.metrics) or []
    evaluation = _read(read_evaluation, directory.evaluation)
    config = _read(load_run_config, directory.config) if directory.config.is_file() else None
    together = _read(read_together, directory.experts)
    path = shlex.quote(str(run_directory))
    train = f"deepspeed launch/pretrain_t2i.sh --config CONFIG.yaml run.directory={path}"
    sample = f'python -m diffmoe_scale.sample --checkpoint {path} --prompt "a red circle"'
    evaluate = f"python -m diffmoe_scale.evaluate --checkpoint {path}"
    sections = {
        "status": lambda: status_section(records, config, directory, train),
        "settings": lambda: settings_section(config, directory, train),
        "training": lambda: training_section(records, train),
        "samples": lambda: samples_section(directory, sample),
        "scores": lambda: scores_section(evaluation, records, directory, evaluate),
        "experts": lambda: experts_section(evaluation, records, config, evaluate),
        "capacity": lambda: capacity_section(newest_sweep(directory)),
        "expert health": lambda: health_section(records, together),
        "troubles": lambda: troubles_section(records, config, directory.log),
    }
    name = run_directory.resolve().name
    body = [
        element("h1", name),
        element("p", str(run_directory.resolve()), kind="note"),
        *(_section(title, build) for title, build in sections.items()),
        element("footer", f"Written {time.strftime('%Y-%m-%d %H:%M')} by diffmoe_scale."),
    ]
    # A file name need not be text.
    replace_file(directory.report, page(name, join(body)).encode("utf-8", "replace"))
    return directory.report


def _read(read: Callable[[Path], Found], path: Path) -> Found | None:
    try:
        return read(path)
    except Exception as error:  # as for the sections below
        logger.warning("%s is left out of the report: %s", path.name, error)
        return None


def _section(title: str, build: Callable[[], Markup]) -> Markup:
    """A section, or a line that says that it could not be made."""
    try:
        return build()
    except Exception as error:  # anything may have happened to a run's files: the others are shown
        logger.warning("the report has no section %r: %r", title, error, exc_info=True)
        return element("p", f"The section {title} could not be made: {error!r}", kind="missing")
