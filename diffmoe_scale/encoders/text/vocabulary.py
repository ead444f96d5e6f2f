"""The tokenizer of a language model, from its own files and never by code of a folder.

T5's ids come from sentencepiece: transformers' T5Tokenizer (5.24) makes unknown what the model spells in
bytes, and takes "</s>" or "<extra_id_0>" in a caption for special tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any  # JSON

import tokenizers

from diffmoe_scale.encoders.text.architecture import SENTENCEPIECE, Architecture
from diffmoe_scale.encoders.text.folder import PIECES_FILE, TOKENIZER_FILE, ModelFolder
from diffmoe_scale.encoders.text.tokenizer import Tokenizer, open_pieces

PADDING = -1
"""No piece of any vocabulary: 0 is one of many."""
PROBE = "a"


def tokenizer_path(folder: ModelFolder, tokenizer_folder: str, setting: str) -> Path:
    """The file of the tokenizer, in the folder or in another. Raises: ValueError where there is none."""
    name = PIECES_FILE if folder.model_type in SENTENCEPIECE else TOKENIZER_FILE
    place = Path(tokenizer_folder) if tokenizer_folder else folder.path
    if not (place / name).is_file():
        if not tokenizer_folder:
            raise folder.error(
                f"the folder has no {name}; expected the tokenizer of a {folder.model_type} model there, or "
                f"{setting} set to its folder"
            )
        raise ValueError(
            f"{setting} is {tokenizer_folder!r}; expected a folder with {name}, the tokenizer of a "
            f"{folder.model_type} model"
        )
    return place / name


def build_tokenizer(
    path: Path, folder: ModelFolder, architecture: Architecture, max_tokens: int
) -> Tokenizer:
    """Raises: ValueError for a file that is damaged, or has pieces that the network has no embedding for."""
    try:
        if folder.model_type in SENTENCEPIECE:
            tokenizer, largest = _of_sentencepiece(path, max_tokens)
        else:
            tokenizer, largest = _of_json(path, folder.settings, max_tokens)
    except Exception as error:  # tokenizers raises Exception itself
        raise ValueError(
            f"tokenizer {path} cannot be used ({error}); expected the one of the {folder.model_type} model "
            f"of {folder.path}"
        ) from error
    if largest >= architecture.vocabulary:
        raise ValueError(
            f"tokenizer {path} has ids to {largest}, but the model of {folder.path} has embeddings of "
            f"{architecture.vocabulary}; expected the tokenizer of that model"
        )
    taken = len(tokenizer.start) + len(tokenizer.end)
    if max_tokens <= taken:
        raise ValueError(f"max_tokens {max_tokens} leaves no place beside {taken} special tokens")
    return tokenizer


def _of_sentencepiece(path: Path, max_tokens: int) -> tuple[Tokenizer, int]:
    """The tokenizer, and its largest id."""
    processor = open_pieces(path)
    end = processor.eos_id()
    if end < 0:
        raise ValueError("it has no end token")
    tokenizer = Tokenizer(
        processor.encode, start=[], end=[end], max_tokens=max_tokens, pad=PADDING, empty=end
    )
    return tokenizer, processor.vocab_size() - 1


def _of_json(path: Path, settings: Mapping[str, Any], max_tokens: int) -> tuple[Tokenizer, int]:
    """The tokenizer, and the largest id that a caption can give."""
    fast = tokenizers.Tokenizer.from_file(str(path))
    fast.no_truncation()
    fast.no_padding()
    # "<eos>" in a caption is text.
    fast.encode_special_tokens = True
    pieces = fast.encode(PROBE, add_special_tokens=False).ids
    whole = fast.encode(PROBE, add_special_tokens=True).ids
    starts = [first for first in range(len(whole)) if whole[first : first + len(pieces)] == pieces]
    if not pieces or not starts:
        raise ValueError(f"it gives {whole} for {PROBE!r} and {pieces} without special tokens")
    start, end = whole[: starts[0]], whole[starts[0] + len(pieces) :]
    named = [number for name in ("eos", "bos", "pad") for number in _special_id(settings, name)]
    empty = named[0] if named else pieces[0]

    def split(captions: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in fast.encode_batch_fast(captions, add_special_tokens=False)]

    special = {number for number, token in fast.get_added_tokens_decoder().items() if token.special}
    possible = set(fast.get_vocab(with_added_tokens=True).values()) - special
    tokenizer = Tokenizer(
        split,
        start=start,
        end=end,
        max_tokens=max_tokens,
        pad=PADDING,
        empty=empty,
        keeps_spaces=True,
    )
    return tokenizer, max(possible | {*start, *end, empty})


def _special_id(settings: Mapping[str, Any], name: str) -> list[int]:
    """An id that config.json names; the first of several."""
    value = settings.get(f"{name}_token_id")
    first = value[0] if isinstance(value, list) and value else value
    return [first] if type(first) is int and first >= 0 else []
