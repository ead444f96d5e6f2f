"""GenEval (arXiv 2310.11513, github.com/djghosh13/geneval): its prompts, its folders, its results.

In: prompts/evaluation_metadata.jsonl. Out: PICTURES/00000/metadata.jsonl (one object) and samples/0000.png to
0003.png. Back: the file that evaluation/evaluate_images.py writes, one line a picture.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from diffmoe_scale.evaluation.suites.copies import all_places, read_json_lines
from diffmoe_scale.evaluation.suites.suite import PictureScore, Suite, SuitePrompt
from diffmoe_scale.files import replace_file

PICTURES = 4
"""A prompt, in the paper."""
FIELDS = {"tag": str, "include": list, "prompt": str}
RESULTS = "geneval_results.jsonl"
RESULT_FIELDS = {"filename": str, "tag": str, "prompt": str, "correct": bool}
FILE = re.compile(r"(?:.*/)?([^/]+)/pictures/(\d+)/samples/(\d+)\.png")
NAME = "GenEval (evaluation_metadata.jsonl)"


@dataclass(frozen=True, kw_only=True)
class GenEval(Suite):
    """The share of pictures that show what was asked, as the mean over the six tags."""

    score_name = "correct"
    means_of_groups = True

    def file_of(self, place: int) -> str:
        prompt, copy = divmod(place, self.copies)
        return f"{prompt:05d}/samples/{copy:04d}.png"

    def export(self, folder: Path) -> str:
        for number, prompt in enumerate(self.prompts):
            path = folder / f"{number:05d}" / "metadata.jsonl"
            if not path.is_file():
                replace_file(path, json.dumps(dict(prompt.metadata)).encode())
        return (
            f"score with GenEval's own code: python evaluation/evaluate_images.py {folder} --outfile "
            f"{folder.parent / RESULTS} ..., then run the evaluation again"
        )

    def read_results(self, folder: Path) -> dict[int, PictureScore] | None:
        path = folder / RESULTS
        if not path.is_file():
            return None
        found: dict[int, PictureScore] = {}
        entries = read_json_lines(path, RESULT_FIELDS, "GenEval's results")
        for number, entry in enumerate(entries, start=1):
            where = f"{path} line {number}"
            place = self._place(where, entry["filename"], folder.name)
            asked = self.prompt_of(place)
            if (entry["prompt"], entry["tag"]) != (asked.text, asked.group):
                raise ValueError(
                    f"{where} is about the prompt {entry['prompt']!r:.80} ({entry['tag']}), but "
                    f"{entry['filename']} was drawn for {asked.text!r:.80} ({asked.group}): results of "
                    "another "
                    "file of prompts; score these pictures"
                )
            found[place] = PictureScore(float(entry["correct"]))
        all_places(found, self.count, path)
        return found

    def _place(self, where: str, filename: str, job: str) -> int:
        match = FILE.fullmatch(filename.replace("\\", "/"))
        if match is None:
            raise ValueError(
                f"{where} is about {filename!r:.120}; expected pictures "
                f"{job}/pictures/00000/samples/0000.png ..."
            )
        if match[1] != job:
            raise ValueError(
                f"{where} is about {match[1]}, pictures of another model or of other settings; expected "
                "those "
                f"of {job}"
            )
        prompt, copy = int(match[2]), int(match[3])
        if prompt >= len(self.prompts) or copy >= self.copies:
            raise ValueError(
                f"{where} is about {filename!r:.120}, which was not drawn: there are {len(self.prompts)} "
                f"prompts with {self.copies} pictures each"
            )
        return prompt * self.copies + copy


def geneval_suite(file: Path, *, name: str, copies: int) -> GenEval:
    """Raises: ValueError for a file of another benchmark."""
    entries = read_json_lines(file, FIELDS, NAME)
    prompts = [SuitePrompt(entry["prompt"], entry["tag"], entry) for entry in entries]
    return GenEval(kind="geneval", name=name, prompts=prompts, copies=copies or PICTURES)
