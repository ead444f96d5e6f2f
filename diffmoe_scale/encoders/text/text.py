"""Captions to features: a small encoder that is trained along, or a frozen open_clip text tower.

B captions, L tokens, T token width, V pooled width.
"""

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any  # open_clip's towers, tokenizers and JSON carry no types

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.config.check import require
from diffmoe_scale.config.encoders import TextConfig
from diffmoe_scale.encoders.fingerprint import fingerprint
from diffmoe_scale.files import replace_file

# T5's layout of special pieces.
PAD, END, UNKNOWN = 0, 1, 2


@dataclass(frozen=True)
class TextFeatures:
    """What the transformer sees of captions: token features, where they are valid (True), and one vector a
    caption."""

    tokens_BLT: Tensor
    mask_BL: Tensor
    pooled_BV: Tensor


class Tokenizer:
    """Captions to int64 ids [B, L], 0 after the end token; L is the longest of the batch, `max_tokens` at
    most.

    Longer captions lose their last pieces, never the end token. `num_cut` of `num_captions` so far were cut.
    """

    def __init__(
        self, split: Callable[[list[str]], list[list[int]]], *, start: list[int], end: int, max_tokens: int
    ) -> None:
        self.split = split
        self.start = start
        self.end = end
        self.max_tokens = max_tokens
        self.num_captions = 0
        self.num_cut = 0

    def __call__(self, captions: list[str]) -> Tensor:
        room = self.max_tokens - len(self.start) - 1
        pieces = self.split(captions)
        self.num_captions += len(pieces)
        self.num_cut += sum(len(row) > room for row in pieces)
        rows = [[*self.start, *row[:room], self.end] for row in pieces]
        length = max(len(row) for row in rows)
        return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


class TextEncoder(nn.Module, ABC):
    """Ids [B, L] of `tokenize` to TextFeatures. An encoder that is not trained has no gradients and is no
    part of a checkpoint."""

    is_trained: bool
    token_width: int
    pooled_width: int

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def tokenize(self, captions: list[str]) -> Tensor:
        """Ids on the CPU, int64 [B, L]; an empty caption has no piece, only what the tokenizer adds."""
        return self.tokenizer(captions)

    def fingerprint(self) -> str:
        """Equal for encoders that give equal features."""
        return fingerprint(self, type(self).__name__, self.tokenizer.max_tokens)

    @abstractmethod
    def forward(self, tokens_BL: Tensor) -> TextFeatures: ...


class TextBlock(nn.Module):
    """Pre-norm transformer block, [B, L, T] -> [B, L, T]; every token sees all valid tokens of its caption."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.w_in = nn.Linear(width, 4 * width)
        self.w_out = nn.Linear(4 * width, width)

    def forward(self, x_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        query, key, value = (
            self.qkv(self.attention_norm(x_BLT)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_BL[:, None, None, :])
        x_BLT = x_BLT + self.projection(y.transpose(1, 2).flatten(2))
        hidden = F.gelu(self.w_in(self.feed_forward_norm(x_BLT)), approximate="tanh")
        return x_BLT + self.w_out(hidden)


class SentencePieceEncoder(TextEncoder):
    """Token and position embeddings, `text.depth` blocks, LayerNorm; pooled is the mean over valid tokens."""

    is_trained = True

    def __init__(self, config: TextConfig, processor: sentencepiece.SentencePieceProcessor) -> None:
        super().__init__(Tokenizer(processor.encode, start=[], end=END, max_tokens=config.max_tokens))
        self.token_width = self.pooled_width = config.width
        self.token_embedding = nn.Embedding(processor.vocab_size(), config.width)
        self.position_LT = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.blocks = nn.ModuleList(TextBlock(config.width, config.heads) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(config.width)
        self._initialize()

    def _initialize(self) -> None:
        """Token embeddings of unit variance (T5's): at 0.02 Adam's first steps move all of them together by
        many times their differences, and every caption looks the same for thousands of steps."""
        nn.init.normal_(self.token_embedding.weight, std=1.0)
        nn.init.normal_(self.position_LT, std=0.3)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens_BL: Tensor) -> TextFeatures:
        mask_BL = tokens_BL != PAD
        x_BLT = self.token_embedding(tokens_BL) + self.position_LT[: tokens_BL.shape[1]]
        for block in self.blocks:
            x_BLT = block(x_BLT, mask_BL)
        x_BLT = self.final_norm(x_BLT)
        weight_BL = mask_BL.to(x_BLT.dtype)
        pooled_BT = torch.einsum("blt,bl->bt", x_BLT, weight_BL) / weight_BL.sum(1, keepdim=True)
        return TextFeatures(x_BLT, mask_BL, pooled_BT)


class OpenClipEncoder(TextEncoder):
    """A frozen text tower: its penultimate hidden states, and its pooled and projected feature, both as they
    come (not normalized)."""

    is_trained = False

    # open_clip's towers and tokenizer carry no types.
    def __init__(self, tower: Any, tokenizer: Any, *, max_tokens: int) -> None:
        start, end = [tokenizer.sot_token_id], tokenizer.eot_token_id
        super().__init__(
            Tokenizer(
                lambda captions: [tokenizer.encode(caption) for caption in captions],
                start=start,
                end=end,
                max_tokens=max_tokens,
            )
        )
        self.tower = tower
        self.requires_grad_(False).eval()
        self.context_length: int = tower.context_length
        with torch.no_grad():
            probe = self(self.tokenize([""]))
        self.tokenizer.num_captions = 0
        self.token_width, self.pooled_width = probe.tokens_BLT.shape[-1], probe.pooled_BV.shape[-1]

    def forward(self, tokens_BL: Tensor) -> TextFeatures:
        length = tokens_BL.shape[1]
        # The tower adds one position embedding for each token of its full context. It is causal: padding
        # changes nothing before it.
        padded = F.pad(tokens_BL, (0, self.context_length - length), value=PAD)
        output = self.tower.forward_intermediates(text=padded, text_indices=2, normalize=False)
        # The end token has the largest id; 0 is padding and also a piece ("!").
        mask_BL = torch.arange(length, device=tokens_BL.device) <= tokens_BL.argmax(1, keepdim=True)
        return TextFeatures(output["text_intermediates"][0][:, :length], mask_BL, output["text_features"])


def build_text_encoder(config: TextConfig, *, tokenizer_path: Path) -> TextEncoder:
    """The encoder of a config, on the CPU. Weights of a trained one are drawn from torch's global generator.

    Raises: ValueError for a missing tokenizer, missing or unfit weights, an unknown architecture.
    """
    match config.kind:
        case "sentencepiece":
            return SentencePieceEncoder(config, load_tokenizer(tokenizer_path, vocabulary=config.vocabulary))
        case "open_clip":
            return _build_open_clip(config)


def load_tokenizer(path: Path, *, vocabulary: int) -> sentencepiece.SentencePieceProcessor:
    """The sentencepiece model that `train_tokenizer` wrote, with at most `vocabulary` pieces."""
    if not path.is_file():
        raise ValueError(
            f"tokenizer {path} does not exist; expected the sentencepiece model that the run wrote beside its config.yaml"
        )
    # One thread: a batch of captions takes less time than starting a pool of them.
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path), num_threads=1)
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


def train_tokenizer(captions: Iterable[str], *, vocabulary: int, path: Path) -> None:
    """Write a sentencepiece model (BPE) of at most `vocabulary` pieces; the same captions give the same
    bytes.

    Not unigram: of captions with few distinct words it keeps letters and drops words ("four" becomes f, o,
    ur).

    Raises: ValueError without captions, or for a vocabulary that has no room for the bytes and the captions'
    characters.
    """
    texts = [caption for caption in captions if caption.strip()]
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
                f"text.vocabulary is {vocabulary}; expected at least {needed[1]}: 256 bytes, the special pieces and the captions' characters"
            ) from error
        if possible is None:
            raise
        model = _train_bpe(texts, int(possible[1]))  # every word of the captions is a piece already
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, model)


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


def _build_open_clip(config: TextConfig) -> OpenClipEncoder:
    import open_clip  # seconds, and needed by few

    name, weights = _local_open_clip(config, open_clip.list_models())
    try:
        _check_architecture(open_clip.get_model_config(name))
        tower = open_clip.create_model(name, pretrained=weights, require_pretrained=True)
    except Exception as error:  # torch, safetensors and open_clip each raise their own
        raise ValueError(
            f"text.open_clip_weights {config.open_clip_weights!r} does not load as text.open_clip_name {name!r}: {error}"
        ) from error
    del tower.visual
    require(
        config.max_tokens <= tower.context_length,
        "text.max_tokens",
        config.max_tokens,
        f"at most {tower.context_length}, the context of {name}",
    )
    return OpenClipEncoder(tower, open_clip.get_tokenizer(name), max_tokens=config.max_tokens)


def _local_open_clip(config: TextConfig, known: list[str]) -> tuple[str, str | None]:
    """Name and weight file for open_clip, checked to be on this machine: it would look for anything else on
    the network, half a minute long."""
    name, weights = config.open_clip_name, config.open_clip_weights
    if weights.startswith("local-dir:"):
        folder = Path(weights.removeprefix("local-dir:"))
        is_complete = (folder / "open_clip_config.json").is_file() and any(
            folder.glob(f"*.{ending}") for ending in ("safetensors", "bin", "pth")
        )
        require(
            is_complete,
            "text.open_clip_weights",
            weights,
            "local-dir: and a folder with open_clip_config.json and a weight file",
        )
        return weights, None
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    require(
        name in known, "text.open_clip_name", name, f"a name known to open_clip, such as {', '.join(near)}"
    )
    require(
        Path(weights).is_file(),
        "text.open_clip_weights",
        weights,
        "an existing local weight file, or local-dir: and a folder",
    )
    # Absolute, so that a file called like one of open_clip's pretrained tags is not taken for the tag.
    return name, str(Path(weights).resolve())


def _check_architecture(architecture: dict[str, Any]) -> None:  # open_clip's JSON
    """Raise ValueError for towers whose tokenizer open_clip does not bundle, or whose features depend on the
    padding."""
    unfit = [
        key
        for key in ("hf_model_name", "hf_tokenizer_name", "no_causal_mask", "embed_cls")
        if architecture.get("text_cfg", {}).get(key)
    ]
    unfit += [key for key in ("multimodal_cfg",) if key in architecture]
    if unfit:
        raise ValueError(
            f"its text tower has {', '.join(unfit)}; expected a causal tower with open_clip's own tokenizer"
        )
