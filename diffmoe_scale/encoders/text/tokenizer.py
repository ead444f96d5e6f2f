"""Captions to token ids, and the sentencepiece model of a run."""

import re
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from diffmoe_scale.config.check import require
from diffmoe_scale.files import replace_file
from diffmoe_scale.unicode import clean_text

# T5's layout of special pieces.
PAD, END, UNKNOWN = 0, 1, 2
LONGEST_PIECE = 32
"""Characters: more than a piece of any tokenizer has."""
LONGEST_LINE = 1000


class Tokenizer:
    """Captions to int64 ids [B, L], `pad` after the last token; L is the longest of the batch, `max_tokens`
    at most.

    Longer captions lose their last pieces, never what stands at their `end`. A caption without any token
    becomes `empty`: attention needs one. `keeps_spaces` says that pieces tell one space from several.
    `num_cut` of `num_captions` so far were cut.
    """

    def __init__(
        self,
        split: Callable[[list[str]], list[list[int]]],
        *,
        start: list[int],
        end: list[int],
        max_tokens: int,
        pad: int = PAD,
        empty: int = END,
        keeps_spaces: bool = False,
    ) -> None:
        self.split = split
        self.start, self.end = start, end
        self.max_tokens = max_tokens
        self.pad, self.empty = pad, empty
        self.keeps_spaces = keeps_spaces
        self.num_captions = 0
        self.num_cut = 0

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Raises nothing for any text: what is no Unicode text is replaced (`clean_text`)."""
        most_pieces = self.max_tokens - len(self.start) - len(self.end)
        texts = [clean_text(caption)[0] for caption in captions]
        pieces = self.split(
            [shorten(text, self.max_tokens, keeps_spaces=self.keeps_spaces) for text in texts]
        )
        self.num_captions += len(pieces)
        self.num_cut += sum(len(row) > most_pieces for row in pieces)
        rows = [[*self.start, *row[:most_pieces], *self.end] or [self.empty] for row in pieces]
        length = max(len(row) for row in rows)
        return torch.tensor([row + [self.pad] * (length - len(row)) for row in rows])


def shorten(caption: str, max_tokens: int, *, keeps_spaces: bool) -> str:
    """The start of a caption that is far longer than `max_tokens`: open_clip's tokenizer takes hours for a
    word of a million letters. Several spaces are one unless the tokenizer `keeps_spaces` as they are."""
    limit = LONGEST_PIECE * max_tokens
    if len(caption) <= limit:
        return caption
    return (caption if keeps_spaces else " ".join(caption.split()))[:limit]


def load_tokenizer(path: Path, *, vocabulary: int) -> sentencepiece.SentencePieceProcessor:
    """The sentencepiece model that `train_tokenizer` wrote, with at most `vocabulary` pieces.

    Raises: ValueError for a file that is missing, damaged, or no such model.
    """
    if not path.is_file():
        raise ValueError(
            f"tokenizer {path} does not exist; expected the sentencepiece model that the run wrote beside "
            "its config.yaml"
        )
    try:
        processor = open_pieces(path)
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"tokenizer {path} cannot be read as a sentencepiece model ({error}); restore it from a copy, or "
            "remove it if the run has no checkpoint: it is then made anew"
        ) from error
    special = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    require(
        special == (PAD, END, UNKNOWN),
        f"tokenizer {path}: ids of pad, end, unknown",
        special,
        f"T5's {(PAD, END, UNKNOWN)}",
    )
    require(
        processor.vocab_size() <= vocabulary,
        "text.vocabulary",
        vocabulary,
        f"at least the {processor.vocab_size()} pieces of {path}",
    )
    return processor


def open_pieces(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Raises: RuntimeError, OSError for a file that is no sentencepiece model."""
    # One thread: a batch of captions takes less time than starting a pool of them.
    return sentencepiece.SentencePieceProcessor(model_file=str(path), num_threads=1)


def train_tokenizer(captions: Iterable[str], *, vocabulary: int, path: Path) -> None:
    """Write a sentencepiece model (BPE) of at most `vocabulary` pieces; the same captions give the same
    bytes.

    Not unigram: of captions with few distinct words it keeps letters and drops words ("four" becomes f, o,
    ur).

    Raises: ValueError without captions, or for a vocabulary too small for the bytes and the captions'
    characters.
    """
    texts = [line for text, _ in map(clean_text, captions) if text.strip() for line in _lines(text)]
    if not texts:
        raise ValueError(
            f"no captions to train the tokenizer {path} on; expected captions with text in data.train"
        )
    try:
        model = _train_bpe(texts, vocabulary)
    except RuntimeError as error:
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        possible = re.search(r"Please set it to a value <= (\d+)", str(error))
        if needed is not None:
            raise ValueError(
                f"text.vocabulary is {vocabulary}; expected at least {needed[1]}: 256 bytes, the special "
                "pieces and the captions' characters"
            ) from error
        if possible is None:
            raise
        model = _train_bpe(texts, int(possible[1]))  # every word of the captions is a piece already
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, model)


def _lines(text: str) -> list[str]:
    """A text in parts of at most LONGEST_LINE characters, cut between words where there are some:
    sentencepiece passes over lines of more than 4,192 bytes."""
    lines = []
    while len(text) > LONGEST_LINE:
        end = text.rfind(" ", 1, LONGEST_LINE + 1)
        end = end if end > 0 else LONGEST_LINE
        lines.append(text[:end])
        text = text[end:].lstrip(" ")
    return [*lines, text] if text else lines


def _train_bpe(texts: list[str], vocabulary: int) -> bytes:
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        pad_id=PAD,
        eos_id=END,
        unk_id=UNKNOWN,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
