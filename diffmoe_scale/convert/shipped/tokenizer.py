"""Captions to token ids, as in training."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self  # Any: what diffusers passes on

import torch
from torch import Tensor

from diffmoe_scale.encoders.text.tokenizer import shorten
from diffmoe_scale.unicode import clean_text

SETTINGS = "diffmoe_tokenizer.json"
PIECES, FAST = "spiece.model", "tokenizer.json"


class DiffMoETokenizer:
    """Captions to ids [B, L] and their mask, by sentencepiece or by transformers' tokenizers.

    transformers' own T5Tokenizer is no replacement: it makes unknown what the model spells in bytes, and
    takes "</s>" in a caption for the end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_tokens: int,
        start: Sequence[int],
        end: Sequence[int],
        pad: int,
        empty: int,
        keeps_spaces: bool,
    ) -> None:
        """`empty` is what a caption without any token becomes. A `pad` below 0 is 0, told from tokens by the
        mask alone."""
        self.max_tokens, self.start, self.end = max_tokens, list(start), list(end)
        self.pad, self.empty, self.keeps_spaces = pad, empty, keeps_spaces
        if (folder / PIECES).is_file():
            import sentencepiece

            processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / PIECES))
            self.split: Callable[[list[str]], list[list[int]]] = processor.encode
            return
        import tokenizers

        fast = tokenizers.Tokenizer.from_file(str(folder / FAST))
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = True  # "<eos>" in a caption is text

        def split(texts: list[str]) -> list[list[int]]:
            encodings = fast.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]

        self.split = split

    @classmethod
    def from_pretrained(cls, folder: str, **_: Any) -> Self:
        settings = json.loads(Path(folder, SETTINGS).read_text(encoding="utf-8"))
        return cls(Path(folder), **settings)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids, int64 [B, L], and where they are tokens of their caption; L is the longest of the batch."""
        most_pieces = self.max_tokens - len(self.start) - len(self.end)
        texts = [clean_text(caption)[0] for caption in captions]
        pieces = self.split(
            [shorten(text, self.max_tokens, keeps_spaces=self.keeps_spaces) for text in texts]
        )
        rows = [[*self.start, *row[:most_pieces], *self.end] or [self.empty] for row in pieces]
        length = max(len(row) for row in rows)
        ids_BL = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows])
        return ids_BL.clamp(min=0), ids_BL != self.pad
