"""A text tower of open_clip and its tokenizer, from local files; the package open_clip must be installed.

B captions, L tokens, T token width, V pooled width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self  # Any: open_clip's towers and tokenizers carry no types

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.encoders.text.tokenizer import shorten
from diffmoe_scale.unicode import clean_text

MAX_TOKENS = "max_tokens.txt"


class DiffMoEOpenClip(nn.Module):
    """Penultimate hidden states of tokens, and the pooled and projected feature of captions."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    @classmethod
    def from_pretrained(cls, folder: str, torch_dtype: torch.dtype | None = None, **_: Any) -> Self:
        tower = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
        del tower.visual
        model = cls(tower).eval()
        return model if torch_dtype is None else model.to(torch_dtype)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, L, T] of tokens and [B, V] of captions, in fp32."""
        length = tokens_BL.shape[1]
        # The tower adds one position embedding for each token of its full context. It is causal: padding
        # changes nothing before it.
        padded_BL = F.pad(tokens_BL, (0, self.tower.context_length - length))
        output = self.tower.forward_intermediates(text=padded_BL, text_indices=2, normalize=False)
        return output["text_intermediates"][0][:, :length].float(), output["text_features"].float()


class DiffMoEOpenClipTokenizer:
    """Captions to ids [B, L] and their mask."""

    def __init__(self, tokenizer: Any, *, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    @classmethod
    def from_pretrained(cls, folder: str, **_: Any) -> Self:
        max_tokens = int(Path(folder, MAX_TOKENS).read_text(encoding="utf-8"))
        return cls(open_clip.get_tokenizer(f"local-dir:{folder}"), max_tokens=max_tokens)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids, int64 [B, L], and where they are tokens of their caption; L is the longest of the batch."""
        texts = [shorten(clean_text(text)[0], self.max_tokens, keeps_spaces=False) for text in captions]
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        pieces = [self.tokenizer.encode(text)[: self.max_tokens - 2] for text in texts]
        length = max(len(row) for row in pieces) + 2
        rows = [[start, *row, end] for row in pieces]
        tokens_BL = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        # 0 is padding and also a piece ("!").
        return tokens_BL, torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
