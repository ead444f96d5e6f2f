"""Made files with the fields of benchmarks' own files, small ones, and pictures of their suites."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # settings of any type

import numpy as np
from PIL import Image

from diffmoe_scale.config.evaluation import OWN_COPY, SuiteConfig, SuiteKind
from diffmoe_scale.evaluation.suites.build import build_suite
from diffmoe_scale.evaluation.suites.suite import Suite

KINDS: tuple[SuiteKind, ...] = OWN_COPY
BENCHMARKS: tuple[SuiteKind, ...] = tuple(kind for kind in KINDS if kind != "prompts")
SIDE = 8

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "cow", "count": 2}], "exclude": [{"class": "cow", "count": 3}],
     "prompt": "a photo of two cows"},
    {"tag": "counting", "include": [{"class": "cat", "count": 3}], "exclude": [{"class": "cat", "count": 4}],
     "prompt": "a photo of three cats"},
]  # fmt: skip
GENEVAL2 = [
    {"prompt": "two metal toys", "atom_count": 3, "skills": ["count", "attribute", "object"],
     "vqa_list": [["How many toys are in the image?", "two"], ["Are the toys metal?", "Yes"],
                  ["Are there any toys in the image?", "Yes"]]},
    {"prompt": "a green pig", "atom_count": 4, "skills": ["count", "attribute"],
     "vqa_list": [["How many pigs are in the image?", "one"], ["Is the pig green?", "Yes"]]},
]  # fmt: skip
DPG = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language\n"
    "0,a red bus,,1,0,entity,whole,entity - whole (bus),Is there a bus?\n"
    '0,a red bus,,2,1,attribute,color,"attribute - color (bus, red)",Is the bus red?\n'
    '0,a red bus,,3,2,attribute,color,"attribute - color (bus, bright)",Is the red bright?\n'
    "partiprompts1,a cat,,1,0,entity,whole,entity - whole (cat),Is there a cat?\n"
)
ONEIG = """category,id,prompt_en,type,prompt_length,class
Anime_Stylization,000,"1girl, solo","T, P",long,
General_Object,001,"a truck, a sofa",NP,short,
Text_Rendering,000,"a sign, ""HELLO"", here",NP,short,
"""
ONEIG_QUESTIONS = {
    "anime": {"000": {"question": '{"1": "Is there a girl?","2": "Is she alone?"}',
                      "dependency": '{"1": [0],"2": [1]}'}},
    "object": {"001": {"question": {"1": "A truck?", "2": "A sofa?"}, "dependency": {"1": [0], "2": [0]}}},
}  # fmt: skip
LONGTEXT = [
    {"category": "sign", "length": "short", "prompt": "A sign ...", "text": ["FRESH BREWS, EVERY DAY"],
     "text_length": 4, "prompt_id": 0},
    {"category": "poster", "length": "short", "prompt": "A poster ...", "text": ["One", "Two, two"],
     "text_length": 3, "prompt_id": 7},
]  # fmt: skip


def lines_of(entries: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def write_copy(kind: SuiteKind, folder: Path) -> dict[str, Any]:
    """The settings of a suite of this kind, whose files are made."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}.jsonl"
    match kind:
        case "prompts":
            file = folder / "plain.txt"
            file.write_text("one\ntwo\n", encoding="utf-8")
        case "geneval":
            file.write_text(lines_of(GENEVAL), encoding="utf-8")
        case "geneval2":
            file.write_text(lines_of(GENEVAL2), encoding="utf-8")
        case "dpg_bench":
            file = folder / "prompts"
            file.mkdir()
            (file / "0.txt").write_text("a red bus on a road\n", encoding="utf-8")
            (file / "partiprompts1.txt").write_text("a cat", encoding="utf-8")
            (folder / "dpg_bench.csv").write_text(DPG, encoding="utf-8")
            return {"kind": kind, "file": str(file), "questions": str(folder / "dpg_bench.csv")}
        case "t2i_compbench":
            file = folder / "color_val.txt"
            file.write_bytes(b"a red cat and a blue dog.\r\na green bench")
        case "oneig":
            file = folder / "OneIG-Bench.csv"
            file.write_text(ONEIG, encoding="utf-8")
            for name, entries in ONEIG_QUESTIONS.items():
                (folder / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")
            return {"kind": kind, "file": str(file), "questions": str(folder)}
        case "longtext":
            file.write_text(lines_of(LONGTEXT), encoding="utf-8")
    return {"kind": kind, "file": str(file)}


def make_suite(kind: SuiteKind, folder: Path, **settings: Any) -> Suite:
    return build_suite(SuiteConfig(**write_copy(kind, folder) | settings), seed=0)


def draw(suite: Suite, job: Path) -> None:
    """A picture of its own grey for each place."""
    for place in range(suite.count):
        path = job / "pictures" / suite.file_of(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE, 3), place, np.uint8)).save(path)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def values(scores: Mapping[int, Any] | None) -> list[float]:
    assert scores is not None
    return [scores[place].value for place in sorted(scores)]
