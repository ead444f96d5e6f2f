"""A study as its command uses it: rows, plan, work, page."""

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from diffmoe_scale.config.check import require
from diffmoe_scale.config.study import StudyConfig
from diffmoe_scale.lock import hold
from diffmoe_scale.study.commands import rerun_command
from diffmoe_scale.study.cost import describe_costs, describe_plan, find_costs
from diffmoe_scale.study.page import write_page
from diffmoe_scale.study.record import RowResult, read_row, remove_scored, write_results
from diffmoe_scale.study.variants import Row, make_rows, make_variants
from diffmoe_scale.study.work import work_on

logger = logging.getLogger(__name__)


class Study:
    """Raises: ValueError for variants that do not fit, or differ in steps or operations."""

    def __init__(self, config: StudyConfig, file: Path, settings: Sequence[str]) -> None:
        self.config = config
        self.variants = make_variants(config)
        self.rows = make_rows(config, self.variants)
        self.costs = find_costs(config, self.variants)
        self.commands = {row.name: rerun_command(file, row, settings) for row in self.rows}
        self.failures: dict[str, str] = {}

    def chosen(self, *, variants: Sequence[str], seeds: Sequence[int]) -> list[Row]:
        """The rows of these variants and seeds; none named are all. Raises: ValueError for unknown ones."""
        names = [variant.name for variant in self.variants]
        for name in variants:
            require(name in names, "--only", name, f"one of {', '.join(names)}")
        for seed in seeds:
            known = ", ".join(map(str, self.config.study.seeds))
            require(seed in self.config.study.seeds, "--seed", seed, f"one of study.seeds ({known})")
        return [
            row
            for row in self.rows
            if (not variants or row.variant.name in variants) and (not seeds or row.seed in seeds)
        ]

    def done(self) -> list[RowResult]:
        return [result for row in self.rows if (result := read_row(row)) is not None]

    def describe_rows(self, rows: Sequence[Row]) -> list[str]:
        """A line a row."""
        lines = []
        for row in rows:
            result = read_row(row)
            state = (
                f"loss {result.loss:.5f}, score {result.score.mean:.3f}"
                if result is not None
                else f"begun in {row.run}"
                if row.run.is_dir()
                else "waiting"
            )
            lines.append(f"{row.variant.name} seed {row.seed} ({row.fingerprint}): {state}")
        return lines

    def describe_plan(self, rows: Sequence[Row]) -> list[str]:
        """Operations of the variants, and how much there is to do."""
        lines = describe_costs(self.costs, self.config.baseline)
        return [*lines, *describe_plan(self.config, rows, self.costs, self.done())]

    def hold(self) -> IO[str] | None:
        """Keep other studies out of the folder. Raises: ValueError if one works there; OSError."""
        return hold(Path(self.config.study.output) / "lock", setting="study.output", work="works")

    def make_teacher(self, rows: Sequence[Row]) -> None:
        """If a row that is not done needs it. Raises: ValueError for a folder of something else; OSError."""
        teacher = self.config.study.teacher
        if teacher and any(row.config.alignment.encoder == teacher for row in self._waiting(rows)):
            from diffmoe_scale.study.teacher import make_teacher

            make_teacher(Path(teacher), steps=self.config.study.teacher_steps)

    def _waiting(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if read_row(row) is None]

    def work(self, rows: Sequence[Row], *, is_stopped: Callable[[], bool]) -> None:
        """Make what is not done of these rows, the page being written after each."""
        self.failures = work_on(
            self._waiting(rows),
            self.costs,
            at_once=self.config.study.at_once,
            report=self._after_row,
            is_stopped=is_stopped,
        )

    def _after_row(self) -> None:
        """Write the page, and remove checkpoints that every row of their training has scored."""
        logger.info("%s", self.write_report())
        done = {result.fingerprint for result in self.done()}
        by_run = itertools.groupby(sorted(self.rows, key=lambda row: row.run), key=lambda row: row.run)
        for _, rows in by_run:
            sharing = list(rows)
            if not self.config.study.keep_checkpoints and all(row.fingerprint in done for row in sharing):
                remove_scored(sharing[0])

    def write_report(self) -> Path:
        """results.jsonl, report.html and report.md of all that is done. Raises: OSError, ValueError."""
        results = write_results(self.rows)
        return write_page(
            self.config,
            self.variants,
            self.rows,
            results,
            costs=self.costs,
            commands=self.commands,
            failures=self.failures,
        )
