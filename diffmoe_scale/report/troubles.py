"""What went wrong in a run, as a section of the report: samples, steps, saves, shards and warnings."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import FAILURES, NOTES
from diffmoe_scale.report.html import Markup, element, fold, join, table
from diffmoe_scale.report.training import Record, finite
from diffmoe_scale.words import counted

MAX_LOG_LINES = 30
MAX_EVENTS = 20
MAX_LINE = 1000
ALARM_LINE = re.compile(r"\S+ \S+ (WARNING|INFO) \S+: step ")
ALARM = re.compile(r"step (\d{1,18}), alarm (\S{1,60}?)(: | is over)(.*)")
MAX_ALARMS = 40
WARNING = re.compile(r"\S+ \S+ (WARNING|ERROR|CRITICAL) ")
EVENTS = {
    "rollback": re.compile(r"; back to step \d"),
    "failed save": re.compile(r"checkpoint.*(training goes on|training stops|not written|cannot be written)"),
    "damaged checkpoint": re.compile(r"checkpoint .* (is damaged|not used)"),
    "changed shards": re.compile(r"(shards?|data) .*changed|changed .*(shards?|since the last start)", re.I),
}
"""Lines of log.txt that say what a later reader of the run must know, by kind."""


def troubles_section(records: Sequence[Record], config: Config | None, log: Path) -> Markup:
    """What went wrong, from the metrics and the warnings of log.txt."""
    warnings = list(_warnings(log))
    return join(
        [
            element("h2", "Troubles"),
            *_samples(records, config),
            *_steps(records),
            *_alarms(log),
            *_events(warnings),
            _log_lines(warnings, log),
        ]
    )


def _samples(records: Sequence[Record], config: Config | None) -> list[Markup]:
    parts = []
    seen = finite(records[-1], "samples") if records else 0
    if seen > 0:
        num_bad = sum(finite(record, "data/bad_samples") for record in records)
        limit = f"; the run would stop above {100 * config.data.max_bad_fraction:g} %" if config else ""
        share = 100 * num_bad / seen
        text = (
            f"{num_bad:,.0f} of {counted(seen, 'sample', ',.0f')} could not be used ({share:.2g} %){limit}."
        )
        parts.append(element("p", text))
    kinds = list(_kinds_of_trouble(records))
    return [*parts, table(kinds, header=["kind", "", "count"], numbers=(2,))] if kinds else parts


def _steps(records: Sequence[Record]) -> list[Markup]:
    counts = {
        "skipped because of gradients that are not finite": "optimizer/skipped_steps",
        "with a loss that is not finite or far above those before": "defence/bad_steps",
    }
    totals = {text: sum(finite(record, name) for record in records) for text, name in counts.items()}
    return [
        element("p", f"{counted(total, 'step', ',.0f')} {text}.") for text, total in totals.items() if total
    ]


def _alarms(log: Path) -> list[Markup]:
    """Those that were not over at the end of the log; a start says again what is still wrong."""
    active: dict[str, tuple[str, str, str]] = {}
    for line in _lines(log, ALARM_LINE):
        match = ALARM.search(line)
        if match and match[3] == ": ":
            active[match[2]] = match[2], match[1], match[4]
        elif match:
            active.pop(match[2], None)
    if not active:
        return []
    shown = list(active.values())[-MAX_ALARMS:]
    return [table(shown, header=["alarm", "since step", f"{counted(len(active), 'alarm')} not over"])]


def _events(warnings: Sequence[str]) -> list[Markup]:
    """Rollbacks, failed saves, damaged checkpoints and changed shards, each with its line of the log."""
    found = [
        (kind, line)
        for line in warnings
        for kind in [next((kind for kind, pattern in EVENTS.items() if pattern.search(line)), "")]
        if kind
    ]
    if not found:
        return []
    parts = [table(found[-MAX_EVENTS:], header=["event", "line of log.txt"])]
    if len(found) > MAX_EVENTS:
        parts.append(element("p", f"{len(found) - MAX_EVENTS} earlier ones are in log.txt.", kind="note"))
    return parts


def _kinds_of_trouble(records: Sequence[Record]) -> Iterator[tuple[str, str, str]]:
    """Kind, its meaning and its count: samples of weight 0, what was dealt with, and what indexing lost."""
    for prefix, meanings, effect in (
        ("data/bad/", FAILURES, "weight 0"),
        ("data/note/", NOTES, "dealt with"),
    ):
        for kind, meaning in meanings.items():
            if count := sum(finite(record, prefix + kind) for record in records):
                yield kind, f"{meaning} ({effect})", f"{count:,.0f}"
    # Every start finds the same losses again.
    lost = {
        name.removeprefix("data/lost/"): finite(record, name)
        for record in records
        for name in record
        if name.startswith("data/lost/")
    }
    for kind, count in lost.items():
        yield kind, "found in shards when they were indexed", f"{count:,.0f}"


def _warnings(log: Path) -> Iterator[str]:
    return _lines(log, WARNING)


def _lines(log: Path, pattern: re.Pattern[str]) -> Iterator[str]:
    """Also of a log of gigabytes: it is read line by line."""
    if not log.is_file():
        return
    with log.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            if pattern.match(line):
                yield line[:MAX_LINE].rstrip()


def _log_lines(warnings: Sequence[str], log: Path) -> Markup:
    if not warnings:
        text = "No warnings in log.txt." if log.is_file() else "There is no log.txt."
        return element("p", text, kind="note")
    shown = warnings[-MAX_LOG_LINES:]
    return fold(f"Warnings and errors in log.txt: the last {len(shown)} of {len(warnings)}", "\n".join(shown))
