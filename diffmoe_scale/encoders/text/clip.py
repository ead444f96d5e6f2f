"""A frozen open_clip text tower from local files.

B captions, L tokens, T token width, V pooled width.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any  # open_clip's towers, tokenizers and JSON carry no types

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmoe_scale.config.check import require
from diffmoe_scale.config.encoders import TextConfig
from diffmoe_scale.encoders.fingerprint import WeightFiles
from diffmoe_scale.encoders.text.encoder import TextEncoder
from diffmoe_scale.encoders.text.features import TextStream
from diffmoe_scale.encoders.text.tokenizer import PAD, Tokenizer


class OpenClipEncoder(TextEncoder):
    """A frozen text tower: its penultimate hidden states, and its pooled and projected feature, both as they
    come (not normalized)."""

    is_trained = False

    # open_clip's towers and tokenizer carry no types.
    def __init__(self, tower: Any, tokenizer: Any, *, max_tokens: int, files: WeightFiles) -> None:
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
        self.files = files
        self.requires_grad_(False).eval()
        self.context_length: int = tower.context_length
        with torch.no_grad():
            probe = self(self.tokenize([""]))
        self.tokenizer.num_captions = 0
        assert probe.pooled_BV is not None
        self.token_width, self.pooled_width = probe.tokens_BLT.shape[-1], probe.pooled_BV.shape[-1]

    def fingerprint(self) -> str:
        return self.files.fingerprint(self, type(self).__name__, self.tokenizer.max_tokens)

    def forward(self, tokens_BL: Tensor) -> TextStream:
        length = tokens_BL.shape[1]
        # The tower adds one position embedding for each token of its full context. It is causal: padding
        # changes nothing before it.
        padded = F.pad(tokens_BL, (0, self.context_length - length), value=PAD)
        output = self.tower.forward_intermediates(text=padded, text_indices=2, normalize=False)
        # The end token has the largest id; 0 is padding and also a piece ("!").
        mask_BL = torch.arange(length, device=tokens_BL.device) <= tokens_BL.argmax(1, keepdim=True)
        return TextStream(output["text_intermediates"][0][:, :length], mask_BL, output["text_features"])


def build_open_clip(config: TextConfig) -> OpenClipEncoder:
    """The encoder of local files.

    Raises: ValueError for missing or unfit files, an unknown architecture, or captions longer than it reads.
    """
    import open_clip  # seconds, and needed by few

    name, weights = _local_open_clip(config, open_clip.list_models())
    files = _weight_files(name if weights is None else weights)
    with _named_errors(config):
        _check_architecture(open_clip.get_model_config(name))
        tower = open_clip.create_model(name, pretrained=weights, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(name)
        del tower.visual
        context = int(tower.context_length)
    fits = f"at most {context}, the context of {name}"
    require(config.max_tokens <= context, "text.max_tokens", config.max_tokens, fits)
    with _named_errors(config):
        return OpenClipEncoder(tower, tokenizer, max_tokens=config.max_tokens, files=files)


def open_clip_widths(config: TextConfig) -> tuple[int, int]:
    """Widths of a token's and of a caption's pooled features, from the architecture alone.

    Raises: ValueError as `build_open_clip` does.
    """
    import open_clip  # seconds, and needed by few

    name, _ = _local_open_clip(config, open_clip.list_models())
    with _named_errors(config):
        architecture = open_clip.get_model_config(name)
        _check_architecture(architecture)
        return int(architecture["text_cfg"]["width"]), int(architecture["embed_dim"])


@contextmanager
def _named_errors(config: TextConfig) -> Iterator[None]:
    """torch, safetensors and open_clip each raise their own: all become a ValueError that names the files."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"text.open_clip_weights {config.open_clip_weights!r} does not load as text.open_clip_name "
            f"{config.open_clip_name!r}: {type(error).__name__}: {error}"
        ) from error


def _local_open_clip(config: TextConfig, known: list[str]) -> tuple[str, str | None]:
    """Name and weight file for open_clip, checked to be on this machine: it would look for anything else on
    the network, half a minute long."""
    name, weights = config.open_clip_name, config.open_clip_weights
    if weights.startswith("local-dir:"):
        folder = Path(weights.removeprefix("local-dir:"))
        is_complete = (folder / "open_clip_config.json").is_file() and any(_weights_in(folder))
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


def _weights_in(folder: Path) -> list[Path]:
    return [file for ending in ("safetensors", "bin", "pth") for file in folder.glob(f"*.{ending}")]


def _weight_files(weights: str) -> WeightFiles:
    """Of `local-dir:` and a folder, or of one weight file."""
    if weights.startswith("local-dir:"):
        folder = Path(weights.removeprefix("local-dir:"))
        files = [folder / "open_clip_config.json", *_weights_in(folder)]
        return WeightFiles(files, record=folder / "fingerprint.json")
    return WeightFiles([Path(weights)], record=Path(f"{weights}.fingerprint.json"))


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
