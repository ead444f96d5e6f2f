"""Scores of a job whose pictures are there: by exact rule, by the benchmark's own code, by a judge."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # JSON values

from diffmoe_scale.evaluation.harness.drawing import (
    PICTURES,
    DrawnPicture,
    Part,
    check_pictures,
    read_drawn,
    read_picture,
)
from diffmoe_scale.evaluation.harness.job import Job
from diffmoe_scale.evaluation.harness.records import RecordWriter
from diffmoe_scale.evaluation.harness.result import (
    JobResult,
    ScoreTable,
    make_result,
    make_table,
    write_result,
)
from diffmoe_scale.evaluation.judge.judge import (
    ANSWERS,
    Judge,
    fitting_answers,
    read_answers,
    record_of,
)
from diffmoe_scale.evaluation.suites.suite import PictureScore
from diffmoe_scale.files import replace_file
from diffmoe_scale.sampling.ranks import Ranks

logger = logging.getLogger(__name__)

JUDGES = "judges"


def unasked_places(job: Job, folder: Path, fingerprint: str, part: Part) -> list[int]:
    """Places of this part whose pictures are there and that this judge was not asked about."""
    drawn = read_drawn(folder)
    answered = fitting_answers(job.suite, drawn, read_answers(folder).get(fingerprint, {}))
    return [
        place
        for place in part.of(sorted(drawn))
        if place not in answered and job.suite.questions(place // job.suite.copies)
    ]


def ask(
    judge: Judge, job: Job, folder: Path, places: Sequence[int], part: Part, *, ranks: Ranks, rank: int
) -> None:
    """Ask about this rank's share of the pictures; each picture's answers are on the disk before the next is
    looked at. Raises: RunError, OSError, ValueError for a picture that was changed."""
    drawn = read_drawn(folder)
    mine = places[rank :: ranks.size]
    with RecordWriter(folder / f"{ANSWERS}-{part.index + 1}of{part.count}-{rank}.jsonl") as records:
        for number, place in enumerate(mine, start=1):
            questions = job.suite.questions(place // job.suite.copies)
            picture = read_picture(job, folder, place, drawn[place])
            answers = judge.answer(picture, questions)
            records.write(record_of(place, drawn[place].digest, judge, questions, answers))
            if number % 100 == 0 and ranks.is_main:
                logger.info("%s: %d of %d pictures judged", job.title, number, len(mine))


def describe_judge(output: Path, judge: Judge) -> None:
    """Write judges/FINGERPRINT.json. Raises: OSError."""
    path = output / JUDGES / f"{judge.fingerprint}.json"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        replace_file(path, json.dumps(dict(judge.description), indent=1).encode())


def score(
    job: Job,
    folder: Path,
    *,
    judge: str,
    metrics: Sequence[dict[str, Any]] = (),
) -> JobResult | None:
    """Write and return the result of a job; None while pictures of other parts are missing. `judge` is the
    fingerprint of the judge that is used now; "" for none, when all stored answers count.

    Raises: ValueError for the results of another benchmark or model, or a picture that was changed.
    """
    drawn = read_drawn(folder)
    if len(drawn) < job.suite.count:
        return None
    check_pictures(job, folder, drawn)
    advice = job.suite.export(folder / PICTURES)
    tables: dict[str, ScoreTable] = {}
    if drawn[0].score is not None:
        exact = {place: PictureScore(picture.score or 0.0) for place, picture in drawn.items()}
        tables["exact rule"] = make_table(job.suite, exact)
    found = job.suite.read_results(folder)
    if found is not None:
        tables["benchmark"] = make_table(job.suite, found)
    tables |= _judged(job, folder, drawn, judge)
    result = make_result(job, drawn, tables, metrics, "" if tables else advice)
    write_result(folder, result)
    return result


def _judged(job: Job, folder: Path, drawn: Mapping[int, DrawnPicture], judge: str) -> dict[str, ScoreTable]:
    """A table for each judge that answered all questions; those of `judge` alone if it is given."""
    asked = sum(bool(job.suite.questions(prompt)) for prompt in range(len(job.suite.prompts)))
    if not asked:
        return {}
    tables = {}
    for fingerprint, stored in sorted(read_answers(folder).items()):
        answers = fitting_answers(job.suite, drawn, stored)
        if fingerprint == (judge or fingerprint) and len(answers) == asked * job.suite.copies:
            scores = {
                place: job.suite.score_answers(place // job.suite.copies, found)
                for place, found in answers.items()
            }
            tables[f"judge {fingerprint}"] = make_table(job.suite, scores)
    return tables
