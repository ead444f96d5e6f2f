"""What a judge is, and the record of its answers: with it a score can be computed again without the judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol  # Any: JSON values

from diffmoe_scale.evaluation.harness.drawing import DrawnPicture
from diffmoe_scale.evaluation.harness.records import read_records
from diffmoe_scale.evaluation.suites.suite import Answer, Question, Suite

ANSWERS = "answers"


class Judge(Protocol):
    """Answers questions about pictures. `description` is all that decides its answers, as JSON."""

    fingerprint: str
    description: Mapping[str, Any]

    def answer(self, picture: bytes, questions: Sequence[Question]) -> list[Answer]:
        """An answer to each question about a picture (the bytes of its file).

        Raises: RunError if the judge cannot be asked.
        """
        ...


@dataclass(frozen=True)
class StoredAnswers:
    """The answers about one picture, as they are in the records."""

    digest: str
    answers: Mapping[str, Answer]
    asked: Mapping[str, str]

    def fits(self, drawn: DrawnPicture, questions: Sequence[Question]) -> bool:
        """Whether they are about this picture, and answer just these questions."""
        return self.digest == drawn.digest and self.asked == {
            question.name: question.text for question in questions
        }


def record_of(
    place: int, digest: str, judge: Judge, questions: Sequence[Question], answers: Sequence[Answer]
) -> dict[str, Any]:
    """A line of the records."""
    return {
        "place": place,
        "digest": digest,
        "judge": judge.fingerprint,
        "answers": [
            {
                "name": question.name,
                "question": question.text,
                "expected": list(question.answers),
                "answer": answer.text,
                "probability": answer.probability,
            }
            for question, answer in zip(questions, answers, strict=True)
        ],
    }


def read_answers(folder: Path) -> dict[str, dict[int, StoredAnswers]]:
    """The records of a job's folder: by judge's fingerprint, then by place. Raises: ValueError for records of
    another kind."""
    found: dict[str, dict[int, StoredAnswers]] = {}
    for entry in read_records(folder, ANSWERS):
        try:
            found.setdefault(entry["judge"], {})[entry["place"]] = StoredAnswers(
                entry["digest"],
                {line["name"]: Answer(line["answer"], line["probability"]) for line in entry["answers"]},
                {line["name"]: line["question"] for line in entry["answers"]},
            )
        except (LookupError, TypeError) as error:
            raise ValueError(
                f"{folder} has a record of answers that is not of this version ({error!r}); remove its files "
                f"{ANSWERS}-*.jsonl and run again"
            ) from error
    return found


def fitting_answers(
    suite: Suite, drawn: Mapping[int, DrawnPicture], stored: Mapping[int, StoredAnswers]
) -> dict[int, Mapping[str, Answer]]:
    """Those that are about the pictures that are there and answer the suite's questions, by place."""
    return {
        place: found.answers
        for place, found in stored.items()
        if place in drawn and found.fits(drawn[place], suite.questions(place // suite.copies))
    }
