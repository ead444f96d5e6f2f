"""OneIG-Bench (arXiv 2506.07977, github.com/OneIG-Bench/OneIG-Benchmark): its alignment score.

In: OneIG-Bench.csv or OneIG-Bench-ZH.csv, and the folder scripts/alignment/Q_D for a judge. Out:
PICTURES/images/anime/JOB/000.webp, two by two tiles; JOB is the model's name. Scores of alignment: by a
judge, or the table alignment_prompt_score_*.csv of its own code. Its other scores (text, reasoning, style,
diversity) are left to its own code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON values

from diffmoe_scale.evaluation.suites.copies import read_table, read_text, share
from diffmoe_scale.evaluation.suites.dpg_bench import YES, is_yes
from diffmoe_scale.evaluation.suites.suite import Answer, PictureScore, Question, Suite, SuitePrompt
from diffmoe_scale.evaluation.suites.tiles import TILES, write_tiles
from diffmoe_scale.json_text import parse_json

CLASSES = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
ALIGNED = ("anime", "human", "object", "multilingualism")
"""Classes that have questions."""
RESULTS = "oneig_results.csv"
NAME = "OneIG-Bench"


@dataclass(frozen=True, kw_only=True)
class OneIg(Suite):
    """The share of questions answered with yes, of the prompts that have questions."""

    score_name = "alignment"

    def file_of(self, place: int) -> str:
        prompt, copy = divmod(place, self.copies)
        asked = self.prompts[prompt]
        return f"tiles/{asked.group}/{asked.metadata['id']}_{copy}.png"

    def is_scored(self, prompt: int) -> bool:
        return self.prompts[prompt].group in ALIGNED

    def export(self, folder: Path) -> str:
        model = folder.parent.name
        write_tiles(
            self, folder, lambda prompt: f"images/{prompt.group}/{model}/{prompt.metadata['id']}.webp"
        )
        grid = "2,2" if self.copies > 1 else "1,1"
        return (
            f"set a judge and suites.N.questions, or score with OneIG-Bench's own code: --image_dirname "
            f"{folder / 'images'} --model_names {model} --image_grid {grid}, its "
            "alignment_prompt_score_*.csv "
            f"copied to {folder.parent / RESULTS}, then run the evaluation again"
        )

    def questions(self, prompt: int) -> list[Question]:
        return [
            Question(name, f"{text}. Please answer 'Yes' or 'No' only.", YES)
            for name, (text, _) in self.prompts[prompt].metadata["questions"].items()
        ]

    def score_answers(self, prompt: int, answers: Mapping[str, Answer]) -> PictureScore:
        asked = self.prompts[prompt].metadata["questions"]
        right = {name: is_yes(answers[name]) for name in asked}
        counted = [
            right[name] and all(right.get(parent, True) for parent in parents)
            for name, (_, parents) in asked.items()
        ]
        return PictureScore(sum(counted) / len(counted))

    def read_results(self, folder: Path) -> dict[int, PictureScore] | None:
        path = folder / RESULTS
        if not path.is_file():
            return None
        rows = dict(self._rows(path, folder.name))
        found: dict[int, PictureScore] = {}
        for number, prompt in enumerate(self.prompts):
            if self.is_scored(number):
                key = f"{prompt.group}_{prompt.metadata['id']}"
                if key not in rows:
                    raise ValueError(f"{path} lacks a row {key}; score all pictures of {folder.name}")
                for copy in range(self.copies):
                    found[number * self.copies + copy] = PictureScore(rows[key])
        return found

    def _rows(self, path: Path, model: str) -> list[tuple[str, float]]:
        """Raises: ValueError for a table without this model."""
        try:
            table = list(read_table(path, [model], "OneIG-Bench's alignment_prompt_score"))
        except ValueError as error:
            raise ValueError(
                f"{error}; its column is the model's name, which is that of this folder"
            ) from error
        return [(next(iter(row.values())), share(row[model], where)) for where, row in table]


def oneig_suite(file: Path, questions: Path | None, *, name: str, copies: int) -> OneIg:
    """Raises: ValueError for files of another benchmark."""
    copies = copies or TILES
    if copies not in (1, TILES):
        raise ValueError(
            f"suites.N.pictures is {copies}; expected 1 or {TILES}, the tiles of a picture of {NAME}"
        )
    prompts = []
    asked: dict[str, dict[str, Any]] = {}
    for where, row in read_table(file, ["category", "id"], NAME):
        language = next((language for language in ("en", "cn") if f"prompt_{language}" in row), "")
        group = CLASSES.get(row["category"])
        if not language or group is None:
            raise ValueError(
                f"{where} has the category {row['category']!r:.60} and the columns {', '.join(row)!r:.120}; "
                f"expected prompt_en or prompt_cn and a category of {', '.join(CLASSES)}"
            )
        if questions and group in ALIGNED and group not in asked:
            asked[group] = _read_questions(questions / f"{group}{'_zh' if language == 'cn' else ''}.json")
        mine = asked.get(group, {}).get(row["id"], {})
        if group in asked and not mine:
            raise ValueError(
                f"{questions} asks nothing about {group} {row['id']}; expected the questions of {file}"
            )
        metadata = {"id": row["id"], "questions": mine}
        prompts.append(SuitePrompt(row[f"prompt_{language}"].strip(), group, metadata))
    if not prompts:
        raise ValueError(f"{file} holds no prompt; expected the table of {NAME}")
    return OneIg(kind="oneig", name=name, prompts=prompts, copies=copies)


def _read_questions(path: Path) -> dict[str, dict[str, tuple[str, list[str]]]]:
    """By the id of the prompt: (question, numbers of its parents) by number. Raises: ValueError."""
    text = read_text(path, NAME)
    try:
        tree = parse_json(text)
        found = {}
        for key, entry in tree.items():
            texts, parents = (_object(entry[name]) for name in ("question", "dependency"))
            found[key] = {
                name: (str(text), [str(one) for one in parents[name]]) for name, text in texts.items()
            }
        return found
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no questions of {NAME} ({error!r:.100})") from error


def _object(value: Any) -> Any:
    return parse_json(value) if isinstance(value, str) else value
