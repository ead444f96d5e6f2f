"""GenEval 2 (arXiv 2512.16853, github.com/facebookresearch/GenEval2), scored by Soft-TIFA.

In: geneval2_data.jsonl. Out: image_paths.json, {prompt: picture}, for its evaluation.py. Scores: by a judge,
or the file score_lists.json that evaluation.py writes. A prompt's score is the geometric mean over its
questions of the probability of the right answer; "arithmetic mean" is Soft-TIFA AM.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffmoe_scale.evaluation.suites.copies import read_json_lines, read_text, share
from diffmoe_scale.evaluation.suites.suite import Answer, PictureScore, Question, Suite, SuitePrompt
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json

FIELDS = {"prompt": str, "atom_count": int, "vqa_list": list, "skills": list}
RESULTS = "score_lists.json"
NAME = "GenEval 2 (geneval2_data.jsonl)"
YES = ("Yes", "yes", " yes", " Yes")
NUMBERS = dict(
    zip(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        map(str, range(1, 11)),
        strict=True,
    )
)


@dataclass(frozen=True, kw_only=True)
class GenEval2(Suite):
    """Soft-TIFA, with the questions and the spellings of right answers of the benchmark's own code."""

    score_name = "Soft-TIFA GM"

    def export(self, folder: Path) -> str:
        path = folder.parent / "image_paths.json"
        paths = {
            prompt.text: str((folder / self.file_of(number * self.copies)).absolute())
            for number, prompt in enumerate(self.prompts)
        }
        replace_file(path, json.dumps(paths, indent=1).encode())
        return (
            "set a judge, or score with GenEval 2's own code: python evaluation.py --image_filepath_data "
            f"{path} --method soft_tifa_gm --output_file {folder.parent / RESULTS} ..., then run the "
            "evaluation again"
        )

    def questions(self, prompt: int) -> list[Question]:
        return [
            Question(str(number), f"{question} Answer in one word.", right_answers(question, answer))
            for number, (question, answer) in enumerate(self.prompts[prompt].metadata["vqa_list"])
        ]

    def score_answers(self, prompt: int, answers: Mapping[str, Answer]) -> PictureScore:
        count = len(self.prompts[prompt].metadata["vqa_list"])
        return self._score(prompt, [answers[str(number)].probability or 0.0 for number in range(count)])

    def read_results(self, folder: Path) -> dict[int, PictureScore] | None:
        path = folder / RESULTS
        if not path.is_file():
            return None
        try:
            lists = parse_json(read_text(path, "GenEval 2's results"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON; expected GenEval 2's lists of scores") from error
        if not isinstance(lists, list) or len(lists) != len(self.prompts):
            found = f"{len(lists)} lists" if isinstance(lists, list) else type(lists).__name__
            raise ValueError(
                f"{path} holds {found}; expected a list of scores for each of {len(self.prompts)} prompts"
            )
        if self.copies != 1:
            raise ValueError(
                f"{path} is about one picture a prompt, but {self.copies} were drawn; use a judge"
            )
        found_scores = {}
        for number, scores in enumerate(lists):
            where = f"{path} prompt {number}"
            count = len(self.prompts[number].metadata["vqa_list"])
            if not isinstance(scores, list) or len(scores) != count:
                raise ValueError(
                    f"{where} has {scores!r:.60}; expected {count} scores: results of other prompts"
                )
            found_scores[number] = self._score(number, [share(score, where) for score in scores])
        return found_scores

    def _score(self, prompt: int, scores: Sequence[float]) -> PictureScore:
        metadata = self.prompts[prompt].metadata
        parts: dict[str, list[float]] = {"arithmetic mean": [statistics.fmean(scores)]}
        for skill, score in zip(metadata["skills"], scores, strict=True):
            parts.setdefault(skill, []).append(score)
        return PictureScore(geometric_mean(scores), parts)


def right_answers(question: str, answer: str) -> tuple[str, ...]:
    """Spellings of the right answer, as evaluation.py has them: yes for all questions but how many."""
    if not question.startswith("How many"):
        return YES
    digits = NUMBERS.get(answer, "other")
    return (answer, answer.capitalize(), f" {answer}", f" {answer.capitalize()}", digits, f" {digits}")


def geometric_mean(scores: Sequence[float]) -> float:
    return 0.0 if min(scores) == 0 else math.exp(statistics.fmean(math.log(score) for score in scores))


def geneval2_suite(file: Path, *, name: str, copies: int) -> GenEval2:
    """Raises: ValueError for a file of another benchmark."""
    prompts = []
    for number, entry in enumerate(read_json_lines(file, FIELDS, NAME), start=1):
        pairs, skills = entry["vqa_list"], entry["skills"]
        is_right = all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) and part for part in pair)
            for pair in pairs
        )
        is_right = is_right and all(isinstance(skill, str) for skill in skills)
        if not pairs or not is_right or len(skills) != len(pairs):
            raise ValueError(
                f"{file} entry {number}: vqa_list is no list of [question, answer] with as many skills"
            )
        prompts.append(SuitePrompt(entry["prompt"], f"{entry['atom_count']} atoms", entry))
    texts = [prompt.text for prompt in prompts]
    if len(set(texts)) < len(texts):
        raise ValueError(f"{file} asks for a prompt twice; {NAME} finds pictures by their prompts")
    return GenEval2(kind="geneval2", name=name, prompts=prompts, copies=copies or 1)
