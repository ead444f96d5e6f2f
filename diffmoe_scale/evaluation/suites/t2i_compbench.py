"""T2I-CompBench++ (arXiv 2307.06350, github.com/Karine-Huang/T2I-CompBench): a list of prompts for each
skill.

In: a file of examples/dataset such as color_val.txt. Out: PICTURES/samples/PROMPT_000000.png with one running
number, ten pictures a prompt. Back: the vqa_result.json that its own code writes below PICTURES.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON values

from diffmoe_scale.evaluation.suites.copies import all_places, read_text, share
from diffmoe_scale.evaluation.suites.suite import PictureScore, Suite, SuitePrompt
from diffmoe_scale.json_text import parse_json

PICTURES = 10
SKILLS = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
RESULTS = (
    "annotation_blip",
    "labels/annotation_obj_detection_2d",
    "labels/annotation_obj_detection_3d",
    "annotation_num",
    "annotation_clip",
    "annotation_3_in_1",
)
"""Folders of its results, the one that combines others last: it counts."""
LONGEST_NAME = 255
"""Bytes that file systems take."""


@dataclass(frozen=True, kw_only=True)
class CompBench(Suite):
    """The mean score that the benchmark's own code gives to pictures."""

    def file_of(self, place: int) -> str:
        return f"samples/{self.prompt_of(place).text}_{place:06d}.png"

    def export(self, folder: Path) -> str:
        return (
            "score with T2I-CompBench's own code, with --out_dir (or --outpath) "
            f"{folder}/, then run the evaluation again"
        )

    def read_results(self, folder: Path) -> dict[int, PictureScore] | None:
        paths = [folder / "pictures" / name / "vqa_result.json" for name in RESULTS]
        there = [path for path in paths if path.is_file()]
        if not there:
            return None
        path = there[-1]
        try:
            entries = parse_json(read_text(path, "T2I-CompBench's results"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON; expected T2I-CompBench's results") from error
        found: dict[int, PictureScore] = {}
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            place, score = _entry(entry, f"{path} entry {number}", self.count)
            found[place] = PictureScore(score)
        all_places(found, self.count, path)
        return found


def _entry(entry: Any, where: str, count: int) -> tuple[int, float]:
    place = entry.get("question_id") if isinstance(entry, dict) else None
    if isinstance(place, bool) or not isinstance(place, int):
        raise ValueError(f"{where} is {entry!r:.80}; expected question_id and answer of T2I-CompBench")
    if not 0 <= place < count:
        raise ValueError(
            f"{where} is about picture {place}, but {count} were drawn: results of another suite"
        )
    return place, share(entry.get("answer"), where)


def compbench_suite(file: Path, *, name: str, copies: int) -> CompBench:
    """Raises: ValueError for prompts that its file names cannot hold."""
    lines = read_text(file, "T2I-CompBench").splitlines()
    prompts = [SuitePrompt(line.strip()) for line in lines if line.strip()]
    for number, prompt in enumerate(prompts, start=1):
        text = prompt.text
        if "/" in text or "_" in text or len(f"{text}_000000.png".encode()) > LONGEST_NAME:
            raise ValueError(
                f"{file} prompt {number} is {text!r:.80}; T2I-CompBench names its pictures by their prompts: "
                "expected one without / and _ and of at most 244 bytes"
            )
    return CompBench(kind="t2i_compbench", name=name, prompts=prompts, copies=copies or PICTURES)
