"""What costs quality, or a run, without an error: looked for at the start. A line each, with what to do."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from diffmoe_scale.config.schema import Config
from diffmoe_scale.words import counted

FEW_WORDS = 5


def caution_of_guidance(config: Config) -> list[str]:
    """Guidance subtracts what the network says of an empty caption, which it learns by dropped ones."""
    guidance = config.sampling.guidance
    if config.data.caption_dropout > 0 or guidance <= 1:
        return []
    return [
        f"data.caption_dropout is 0 but sampling.guidance is {guidance:g}: the network never sees the empty "
        "caption (or null class) that guidance steers away from; set data.caption_dropout=0.1, or "
        "sampling.guidance=1"
    ]


def caution_of_captions(captions: Sequence[str]) -> list[str]:
    """`captions` are a sample of those of the training data."""
    words = sorted(len(caption.split()) for caption in captions)
    if not words or words[len(words) // 2] >= FEW_WORDS:
        return []
    shares = {share: words[math.ceil(share * (len(words) - 1))] for share in (0.05, 0.5, 0.95)}
    spread = ", ".join(f"{share:.0%} have at most {count}" for share, count in shares.items())
    return [
        f"the captions are short: {spread} words (of {counted(len(words), 'caption')}); a network learns to "
        "draw what its captions say, so describe the pictures in more words, or mix in data that does "
        "(data.train takes several sets)"
    ]


def caution_of_masters(masters: Iterable[Tensor]) -> list[str]:
    """`masters` are the weights that the optimizer updates."""
    formats = sorted({str(master.dtype).removeprefix("torch.") for master in masters} - {"float32"})
    if not formats:
        return []
    return [
        f"the optimizer updates weights in {', '.join(formats)}: steps below their last digit are lost; keep "
        "fp32 weights beside those of model.precision (another version of deepspeed than 0.19 may not)"
    ]


def caution_of_rounded_weights(name: str, dtypes: Iterable[torch.dtype]) -> list[str]:
    """`dtypes` are those of the weights at `name` that a run begins with."""
    if all(dtype.itemsize >= torch.float32.itemsize for dtype in dtypes):
        return []
    return [
        f"run.initialize_from {name} holds weights of 16 bits: training begins with rounded ones; take the "
        "run they are of, or an export with --dtype fp32, where there is one"
    ]
