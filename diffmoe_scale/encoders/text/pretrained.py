"""A frozen T5, UMT5, T5Gemma or decoder model of transformers, from a local folder.

B captions, L tokens, T token width.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from diffmoe_scale.config.check import require
from diffmoe_scale.config.text import TextEncoderConfig
from diffmoe_scale.encoders.fingerprint import WeightFiles
from diffmoe_scale.encoders.text.architecture import (
    Architecture,
    build_network,
    check_layer,
    hidden_states,
    read_architecture,
)
from diffmoe_scale.encoders.text.features import StreamWidths, TextStream
from diffmoe_scale.encoders.text.folder import CONFIG_FILE, ModelFolder, open_folder
from diffmoe_scale.encoders.text.frozen import FrozenTextEncoder
from diffmoe_scale.encoders.text.vocabulary import build_tokenizer, tokenizer_path
from diffmoe_scale.encoders.text.weights import digest_weights, fill, open_weights
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS

logger = logging.getLogger(__name__)

PROBED_TOKENS = 64
IRRELEVANT = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Of config.json: decides no feature."""


@dataclass(frozen=True)
class _Plan:
    """Which network is taken from which folder."""

    folder: ModelFolder
    architecture: Architecture
    layer: int
    precision: str

    def read_network(self, device: torch.device) -> nn.Module:
        network = build_network(self.folder, self.architecture, layer=self.layer)
        with open_weights(self.folder) as weights:
            if "F16" in weights.number_formats(weights.names_for(network)):
                logger.info(
                    "%s is stored in fp16, which overflows in T5 and others: it computes in %s",
                    self.folder.path,
                    self.precision,
                )
            fill(network, weights, device, NUMBER_FORMATS[self.precision])
        return network


class PretrainedEncoder(FrozenTextEncoder):
    """Hidden states of a chosen layer; it gives no pooled feature."""

    def __init__(self, plan: _Plan, tokenizer_file: Path, *, max_tokens: int) -> None:
        folder, architecture = plan.folder, plan.architecture
        tokenizer = build_tokenizer(tokenizer_file, folder, architecture, max_tokens)
        super().__init__(
            tokenizer,
            name=f"{architecture.model_type} of {folder.path}",
            token_width=architecture.width,
            pooled_width=0,
            read_tower=plan.read_network,
        )
        self.plan, self.tokenizer_file = plan, tokenizer_file
        self.files = WeightFiles(
            [folder.path / CONFIG_FILE, tokenizer_file, *folder.weights],
            record=folder.path / "fingerprint.json",
        )
        # Without reading them: a missing tensor is found before the run begins.
        network = build_network(folder, architecture, layer=plan.layer)
        with open_weights(folder) as weights:
            self._stored_names = weights.names_for(network)

    def load(self, device: torch.device) -> None:
        """Read the weights, and encode some tokens. Raises: ValueError where that fails or gives NaN."""
        if self.tower is not None:
            return
        super().load(device)
        folder, count = self.plan.folder, min(self.tokenizer.max_tokens, PROBED_TOKENS)
        ids_BL = torch.arange(count, device=device)[None] % self.plan.architecture.vocabulary
        try:
            with torch.no_grad():
                found_BLT = self.encode(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool)).tokens_BLT
        except (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise folder.error(
                f"its model cannot be computed ({type(error).__name__}: {error}); expected the settings in "
                f"{CONFIG_FILE} that its weights were trained with"
            ) from error
        if not found_BLT.isfinite().all():
            raise folder.error(
                f"its model gives numbers that are not finite in {self.plan.precision}; restore its weights "
                f"and {CONFIG_FILE} from a copy"
            )

    def fingerprint(self) -> str:
        plan, max_tokens = self.plan, self.tokenizer.max_tokens
        settings = type(self).__name__, plan.layer, max_tokens
        return self.files.remember(partial(self._digest, *settings), *settings)

    def _digest(self, *settings: object) -> str:
        described = {key: value for key, value in self.plan.folder.settings.items() if key not in IRRELEVANT}
        tokenizer = self.tokenizer_file.read_bytes()
        with open_weights(self.plan.folder) as weights:
            return digest_weights(weights, self._stored_names, settings, sorted(described.items()), tokenizer)

    def encode(self, tokens_BL: Tensor, mask_BL: Tensor) -> TextStream:
        assert self.tower is not None
        states_BLT = hidden_states(self.tower, tokens_BL.clamp(min=0), mask_BL)
        return TextStream(states_BLT.float(), mask_BL)


def build_pretrained(config: TextEncoderConfig, *, setting: str) -> PretrainedEncoder:
    """The encoder of a folder, without its weights; `setting` is the path of its config, for errors.

    Raises: ValueError for a folder or settings that do not fit.
    """
    folder = open_folder(config.path, f"{setting}.path")
    architecture = read_architecture(folder)
    layer = check_layer(config.layer, architecture, f"{setting}.layer")
    positions = architecture.positions
    require(
        positions == 0 or config.max_tokens <= positions,
        f"{setting}.max_tokens",
        config.max_tokens,
        f"at most {positions}, the positions of the {architecture.model_type} model",
    )
    file = tokenizer_path(folder, config.tokenizer, f"{setting}.tokenizer")
    plan = _Plan(folder, architecture, layer, config.precision)
    return PretrainedEncoder(plan, file, max_tokens=config.max_tokens)


def pretrained_widths(config: TextEncoderConfig, *, setting: str) -> StreamWidths:
    """Of the architecture alone. Raises: ValueError as `build_pretrained` does for folder and config.json."""
    architecture = read_architecture(open_folder(config.path, f"{setting}.path"))
    check_layer(config.layer, architecture, f"{setting}.layer")
    return StreamWidths(architecture.model_type, architecture.width, 0)
