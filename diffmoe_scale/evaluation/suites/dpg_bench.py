"""DPG-Bench (arXiv 2403.05135, github.com/TencentQQGYLab/ELLA): dense prompts, questions that depend on
others.

In: the folder of prompts NAME.txt, and dpg_bench.csv for a judge. Out: PICTURES/grids/NAME.png, two by two
tiles. Scores: by a judge, or the text file that compute_dpg_bench.py writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from diffmoe_scale.evaluation.suites.copies import all_places, read_table, read_text, share
from diffmoe_scale.evaluation.suites.suite import Answer, PictureScore, Question, Suite, SuitePrompt
from diffmoe_scale.evaluation.suites.tiles import TILES, write_tiles

COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
RESULTS = "dpg_results.txt"
NAME = "DPG-Bench"
YES = ("yes", "Yes", " yes", " Yes")


@dataclass(frozen=True, kw_only=True)
class DpgBench(Suite):
    """The share of questions answered with yes; one whose parent question is answered with no counts as
    no."""

    score_name = "yes"

    def file_of(self, place: int) -> str:
        prompt, copy = divmod(place, self.copies)
        return f"tiles/{self.prompts[prompt].metadata['stem']}_{copy}.png"

    def export(self, folder: Path) -> str:
        write_tiles(self, folder, lambda prompt: f"grids/{prompt.metadata['stem']}.png")
        return (
            "set a judge and suites.N.questions, or score with DPG-Bench's own code: python "
            f"dpg_bench/compute_dpg_bench.py --image-root-path {folder / 'grids'} --pic-num {self.copies} "
            f"--res-path {folder.parent / RESULTS} ..., then run the evaluation again"
        )

    def questions(self, prompt: int) -> list[Question]:
        return [
            Question(name, f"{text} Answer with yes or no.", YES)
            for name, text, _, _ in self.prompts[prompt].metadata["questions"]
        ]

    def score_answers(self, prompt: int, answers: Mapping[str, Answer]) -> PictureScore:
        scores: dict[str, float] = {}
        parts: dict[str, list[float]] = {}
        for name, _, _, kind in self.prompts[prompt].metadata["questions"]:
            scores[name] = float(is_yes(answers[name]))
            parts.setdefault(kind, []).append(scores[name])
        # In the order of the file, on scores that were lowered before, as compute_dpg_bench.py does it.
        for name, _, parents, _ in self.prompts[prompt].metadata["questions"]:
            if any(scores.get(parent) == 0 for parent in parents):
                scores[name] = 0.0
        return PictureScore(sum(scores.values()) / len(scores), parts)

    def read_results(self, folder: Path) -> dict[int, PictureScore] | None:
        path = folder / RESULTS
        if not path.is_file():
            return None
        places = {prompt.metadata["stem"]: number for number, prompt in enumerate(self.prompts)}
        found: dict[int, PictureScore] = {}
        for number, line in enumerate(read_text(path, "DPG-Bench's results").splitlines(), start=1):
            name, *cells = line.split(", ")
            where, file = f"{path} line {number}", PurePath(name)
            if line.startswith("Model: "):
                break  # its summary
            if len(cells) != self.copies + 1 or file.stem not in places:
                raise ValueError(
                    f"{where} is {line!r:.100}; expected a picture of this suite with {self.copies} scores "
                    "and "
                    "their mean: results of another number of pictures, or of another benchmark"
                )
            if folder.name not in file.parts:
                raise ValueError(
                    f"{where} is about {name!r:.120}: pictures of another model or of other settings than "
                    f"{folder.name}"
                )
            for copy, cell in enumerate(cells[:-1]):
                found[places[file.stem] * self.copies + copy] = PictureScore(share(cell, where))
        all_places(found, self.count, path)
        return found


def is_yes(answer: Answer) -> bool:
    return answer.text.strip().strip(".").lower() == "yes"


def dpg_suite(folder: Path, questions: Path | None, *, name: str, copies: int) -> DpgBench:
    """Raises: ValueError for a folder or a table of another benchmark."""
    copies = copies or TILES
    if copies > TILES:
        raise ValueError(
            f"suites.N.pictures is {copies}; expected 1 to {TILES}, the tiles of a picture of DPG-Bench"
        )
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder} is no folder of prompts NAME.txt; expected DPG-Bench's dpg_bench/prompts")
    asked = _questions(questions) if questions else {}
    prompts = []
    for file in files:
        text = read_text(file, NAME).strip()
        if not text:
            raise ValueError(f"{file} is empty; expected a prompt of DPG-Bench")
        mine = asked.get(file.stem, [])
        if asked and not mine:
            raise ValueError(
                f"{questions} asks nothing about {file.stem}; expected the table of these prompts"
            )
        prompts.append(SuitePrompt(text, "", {"stem": file.stem, "questions": mine}))
    return DpgBench(kind="dpg_bench", name=name, prompts=prompts, copies=copies)


def _questions(path: Path) -> dict[str, list[tuple[str, str, list[str], str]]]:
    """(number, question, numbers of its parents, kind) of each question, by the name of the prompt."""
    found: dict[str, list[tuple[str, str, list[str], str]]] = {}
    for where, row in read_table(path, COLUMNS, NAME):
        parents = [parent.strip() for parent in row["dependency"].split(",")]
        if not row["proposition_id"].strip().isdigit() or not all(parent.isdigit() for parent in parents):
            raise ValueError(f"{where} has no number as proposition_id or dependency")
        kind = row["tuple"].split("(")[0].split("-")[0].strip()
        number, asked = row["proposition_id"].strip(), found.setdefault(row["item_id"], [])
        if any(number == other for other, _, _, _ in asked):
            raise ValueError(f"{where} asks question {number} of {row['item_id']!r:.60} twice")
        asked.append((number, row["question_natural_language"], parents, kind))
    return found
