"""LongText-Bench (arXiv 2507.22058, github.com/X-Omni-Team/X-Omni): long texts to be written in pictures.

In: text_prompts.jsonl or text_prompts_zh.jsonl. Out: PICTURES/0000_1.png to 0000_4.png. Scores: from what a
judge reads, or from the results.jsonl that its own code writes.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from diffmoe_scale.evaluation.suites.copies import all_places, read_json_lines
from diffmoe_scale.evaluation.suites.suite import Answer, PictureScore, Question, Suite, SuitePrompt

PICTURES = 4
FIELDS = {"prompt": str, "text": list, "prompt_id": int}
RESULTS = "longtext_results.jsonl"
RESULT_FIELDS = {"image": str, "prompt": str, "ocr_results": str}
NAME = "LongText-Bench (text_prompts.jsonl)"
QUESTION = (
    "Recognize the text in the image, only reply with the text content, but avoid repeating previously "
    "mentioned content. If no text is recognized, please reply with 'No text recognized'."
)
LETTERS = "\u4e00-\u9fa5a-zA-Z0-9"
ACCENTS = "àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
CHINESE = re.compile("[\u4e00-\u9fa5]")


@dataclass(frozen=True, kw_only=True)
class LongText(Suite):
    """The share of the words (of Chinese: letters) that are read in a picture. The benchmark's own number is
    the part `words`: all words of all pictures together."""

    is_chinese: bool = False
    """Whether letters are counted, not words."""

    score_name = "words read"

    def file_of(self, place: int) -> str:
        prompt, copy = divmod(place, self.copies)
        return f"{self.prompts[prompt].metadata['prompt_id']:04d}_{copy + 1}.png"

    def export(self, folder: Path) -> str:
        return (
            "set a judge, or score with LongText-Bench's own code: textbench/evaluate_text_reward.py "
            "--sample_dir "
            f"{folder}, its results.jsonl copied to {folder.parent / RESULTS}, then run the evaluation again"
        )

    def questions(self, prompt: int) -> list[Question]:
        return [Question("text", QUESTION)]

    def score_answers(self, prompt: int, answers: Mapping[str, Answer]) -> PictureScore:
        return self._score(prompt, answers["text"].text)

    def read_results(self, folder: Path) -> dict[int, PictureScore] | None:
        path = folder / RESULTS
        if not path.is_file():
            return None
        places = {Path(self.file_of(place)).name: place for place in range(self.count)}
        found: dict[int, PictureScore] = {}
        entries = read_json_lines(path, RESULT_FIELDS, "LongText-Bench's results")
        for number, entry in enumerate(entries, start=1):
            file = PurePath(entry["image"])
            place = places.get(file.name)
            if place is None or folder.name not in file.parts:
                raise ValueError(
                    f"{path} line {number} is about {entry['image']!r:.120}; expected pictures of "
                    f"{folder.name}: "
                    "results of another model or of other settings"
                )
            if entry["prompt"] != self.prompt_of(place).text:
                raise ValueError(f"{path} line {number} is about another prompt than {file.name}")
            found[place] = self._score(place // self.copies, entry["ocr_results"])
        all_places(found, self.count, path)
        return found

    def _score(self, prompt: int, read: str) -> PictureScore:
        asked = " ".join(self.prompts[prompt].metadata["text"])
        wanted = Counter(split_words(asked, is_chinese=self.is_chinese))
        found = Counter(split_words(read, is_chinese=self.is_chinese))
        matched, count = (wanted & found).total(), wanted.total()
        return PictureScore(matched / count, {"words": [1.0] * matched + [0.0] * (count - matched)})


def split_words(text: str, *, is_chinese: bool) -> list[str]:
    """The words, or of Chinese the letters, as the benchmark's own code finds them."""
    text = text.replace("No text recognized.", "")
    if is_chinese:
        return re.findall(f"[{LETTERS}{ACCENTS}]", text)
    return re.sub(f"[^{LETTERS}\\s{ACCENTS}]", "", text).lower().split()


def longtext_suite(file: Path, *, name: str, copies: int) -> LongText:
    """Raises: ValueError for a file of another benchmark."""
    prompts = []
    for number, entry in enumerate(read_json_lines(file, FIELDS, NAME), start=1):
        where = f"{file} entry {number}"
        texts = entry["text"]
        if not all(isinstance(text, str) for text in texts) or not split_words(
            " ".join(texts), is_chinese=True
        ):
            raise ValueError(f"{where} has no text to be written: text is {texts!r:.80}")
        prompts.append(SuitePrompt(entry["prompt"], str(entry.get("category", "")), entry))
    ids = [prompt.metadata["prompt_id"] for prompt in prompts]
    if len(set(ids)) < len(ids) or min(ids) < 0:
        raise ValueError(f"{file} has a prompt_id twice, or below 0; pictures are named by it")
    return LongText(
        kind="longtext",
        name=name,
        prompts=prompts,
        copies=copies or PICTURES,
        is_chinese=any(CHINESE.search(text) for prompt in prompts for text in prompt.metadata["text"]),
    )
