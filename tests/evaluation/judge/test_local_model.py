"""A tiny random Qwen2-VL answers through transformers' own code."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.evaluation import JudgeConfig
from diffmoe_scale.evaluation.judge.build import build_judge
from diffmoe_scale.evaluation.judge.judge import Judge
from diffmoe_scale.evaluation.judge.local_model import LocalJudge
from diffmoe_scale.evaluation.suites.suite import Question
from tests.evaluation.judge.models import write_judge

CPU = torch.device("cpu")
YES = Question("0", "Is there a cat?", ("Yes", "yes", " yes", " Yes"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge(tmp_path_factory.mktemp("judge"))


def judge_of(folder: Path) -> Judge:
    judge = build_judge(JudgeConfig(kind="transformers", folder=str(folder)), CPU)
    assert judge is not None
    return judge


def picture(seed: int) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_probability_is_that_of_the_first_token_and_sees_the_picture(folder: Path) -> None:
    """Against the model called by hand with the text of the template written out."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    text = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Is there a cat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    judge = judge_of(folder)
    found = []
    for seed in range(2):
        inputs = processor(text=[text], images=[Image.open(io.BytesIO(picture(seed)))], return_tensors="pt")
        with torch.no_grad():
            probabilities_V = model(**inputs).logits[0, -1].softmax(-1)
        ids = {processor.tokenizer(answer)["input_ids"][0] for answer in YES.answers}
        (answer,) = judge.answer(picture(seed), [YES])
        assert answer.probability == pytest.approx(float(sum(probabilities_V[one] for one in ids)), rel=1e-4)
        assert answer.text == processor.tokenizer.decode(
            [int(probabilities_V.argmax())], skip_special_tokens=True
        )
        found.append(answer.probability)
    assert found[0] != found[1]


def test_without_answers_the_judge_writes(folder: Path) -> None:
    (answer,) = judge_of(folder).answer(picture(0), [Question("text", "Read.")])
    assert answer.probability is None and "<|im_end|>" not in answer.text


@pytest.mark.parametrize("question", [YES, Question("text", "Read.")])
def test_a_model_that_computes_no_numbers_gives_no_answer(folder: Path, question: Question) -> None:
    """Not a probability of 1, which Python's min() makes of NaN."""
    judge = judge_of(folder)
    assert isinstance(judge, LocalJudge)
    with torch.no_grad():
        next(judge._model.parameters()).fill_(torch.nan)
    with pytest.raises(RunError, match=r"judge.folder .* are not finite; .*judge.precision"):
        judge.answer(picture(0), [question])


def test_fingerprint_is_of_the_weights_and_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    copy = write_judge(tmp_path)
    first = judge_of(folder).fingerprint
    assert first == judge_of(folder).fingerprint == judge_of(copy).fingerprint
    weights = load_file(copy / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, copy / "model.safetensors", {"format": "pt"})
    assert judge_of(copy).fingerprint != first
    del weights[name]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks tensors"):
        judge_of(copy)


def test_folders_that_are_no_judge_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"judge.folder .*none is no folder; expected an image-text-to-text"):
        judge_of(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no config.json and .safetensors"):
        judge_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be loaded"):
        judge_of(tmp_path)
