"""A judge from a local folder of an image-text-to-text model, as transformers writes it (Qwen-VL and
others)."""

import json
import os
from collections.abc import Mapping, Sequence
from hashlib import file_digest, sha256
from io import BytesIO
from pathlib import Path
from typing import Any  # transformers' networks carry few types

import torch
from PIL import Image

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.evaluation import JudgeConfig
from diffmoe_scale.encoders.fingerprint import WeightFiles
from diffmoe_scale.evaluation.suites.suite import Answer, Question
from diffmoe_scale.sampling.picture_files import FORMATS

LONGEST_ANSWER = 1024
"""Tokens of text that is read in a picture."""
RECORD = ".diffmoe_scale_judge.json"


class LocalJudge:
    """The probability of the first token is that of the model's own chat template."""

    def __init__(self, config: JudgeConfig, device: torch.device) -> None:
        """Raises: ValueError for a folder that holds no such model."""
        folder = Path(config.folder)
        files = sorted(folder.glob("*.safetensors"))
        if not (folder / "config.json").is_file() or not files:
            what = "has no config.json and .safetensors" if folder.is_dir() else "is no folder"
            raise ValueError(
                f"judge.folder {folder} {what}; expected an image-text-to-text model of transformers"
            )
        dtype = torch.float32 if device.type == "cpu" or config.precision == "fp32" else torch.bfloat16
        self.folder, self.device = folder, device
        self._processor, self._model = _load(folder, dtype, device)
        others = sorted(
            path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".txt", ".model")
        )
        others = [path for path in others if path.name != RECORD]
        weights = WeightFiles([*files, *others], record=folder / RECORD)
        digest = weights.remember(lambda: _digest([*files, *others]), "judge")
        self.description: Mapping[str, Any] = {
            "kind": "transformers",
            "folder": str(folder),
            "model": type(self._model).__name__,
            "weights": digest,
            "precision": str(dtype),
        }
        # Not of the folder: the same model elsewhere is the same judge.
        text = json.dumps([type(self._model).__name__, digest, str(dtype)])
        self.fingerprint = sha256(text.encode()).hexdigest()[:12]

    def answer(self, picture: bytes, questions: Sequence[Question]) -> list[Answer]:
        with Image.open(BytesIO(picture), formats=[kind.upper() for kind in FORMATS]) as image:
            pixels = image.convert("RGB")
        return [self._ask(pixels, question) for question in questions]

    @torch.no_grad()
    def _ask(self, image: Image.Image, question: Question) -> Answer:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question.text}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.device)
        logits_V = self._model(**inputs).logits[0, -1].float()
        if not logits_V.isfinite().all():
            raise RunError(
                f"judge.folder {self.folder}: numbers that the model computes are not finite; restore its "
                "files from a copy, or set judge.precision=fp32"
            )
        if question.answers:
            probabilities_V = logits_V.softmax(-1)
            text = self._decode([int(probabilities_V.argmax())])
            ids = self._first_ids(question.answers)
            return Answer(text, min(1.0, float(probabilities_V[ids].sum())))
        made = self._model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        return Answer(self._decode(made[0, inputs["input_ids"].shape[1] :].tolist()))

    def _decode(self, ids: list[int]) -> str:
        return str(self._processor.tokenizer.decode(ids, skip_special_tokens=True))

    def _first_ids(self, answers: Sequence[str]) -> list[int]:
        """The first tokens of the answers, each once. GenEval 2's own code counts one as often as spellings
        begin with it."""
        encode = self._processor.tokenizer.encode
        return sorted({encode(answer, add_special_tokens=False)[0] for answer in answers})


def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """The processor and the network. No code of the folder is run, nothing is downloaded."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    # transformers annotates from_pretrained without its second result.
    make: Any = AutoModelForImageTextToText
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(folder, **options)
        model, info = make.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(f"judge.folder {folder} cannot be loaded: {first[0][:200]}") from error
    # transformers 5 fills tensors that are missing with random numbers, and only warns.
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"judge.folder {folder} lacks tensors: {', '.join(missing[:3])}, {len(missing)} in all"
        )
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"judge.folder {folder} has no chat template; expected a model that was trained to chat"
        )
    return processor, model.to(device).eval()


def _digest(files: Sequence[Path]) -> str:
    digest = sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(os.fsencode(path.name) + file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
