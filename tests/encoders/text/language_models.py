"""Folders of tiny random language models, as transformers writes them, with tokenizers that were trained."""

import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any  # transformers' networks carry few types

import sentencepiece
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors, trainers

from diffmoe_scale.config.text import TextConfig, TextEncoderConfig
from tests.encoders.text.texts import CAPTIONS

DEPTH, WIDTH, POSITIONS = 3, 32, 64
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5_SIZES: dict[str, Any] = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": DEPTH, "num_heads": 4}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
KINDS = ("t5", "umt5", "t5gemma", "qwen3", "gemma", "gemma2", "gemma3_text", "llama")


def write_pieces(path: Path) -> int:
    """A sentencepiece model with T5's special pieces; its number of pieces."""
    data = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=data,
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path.write_bytes(data.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size())


def write_tokenizer(path: Path, *, starts: bool) -> int:
    """A BPE of bytes, with `<bos>` before each caption or with nothing (Qwen's); its number of pieces."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    if starts:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
        )
    tokenizer.save(str(path))
    return int(tokenizer.get_vocab_size())


def make_network(kind: str, vocabulary: int) -> Any:
    """With random weights, larger than transformers' own, so that layers differ."""
    import transformers

    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": vocabulary, "initializer_range": 0.3}
    match kind:
        case "t5":
            network: Any = transformers.T5EncoderModel(
                transformers.T5Config(vocab_size=vocabulary, feed_forward_proj="gated-gelu", **T5_SIZES)
            )
        case "umt5":
            network = transformers.UMT5EncoderModel(
                transformers.UMT5Config(vocab_size=vocabulary, **T5_SIZES)
            )
        case "t5gemma":
            part = transformers.T5GemmaModuleConfig(**sizes)
            config = transformers.T5GemmaConfig(encoder=part, decoder=part, vocab_size=vocabulary)
            network = transformers.T5GemmaForConditionalGeneration(config)
        case "qwen3":
            network = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))
        case "gemma":
            network = transformers.GemmaForCausalLM(transformers.GemmaConfig(**sizes))
        case "gemma2":
            network = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(sliding_window=4, **sizes))
        case "gemma3_text":
            network = transformers.Gemma3ForCausalLM(
                transformers.Gemma3TextConfig(sliding_window=4, layer_types=LAYER_TYPES, **sizes)
            )
        case "llama":
            network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
        case _:
            raise AssertionError(kind)
    return network.eval()


def write_model(kind: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A folder with config.json, model.safetensors and the tokenizer's file."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind in ("t5", "umt5"):
        vocabulary = write_pieces(folder / "spiece.model") + 8
    else:
        vocabulary = write_tokenizer(folder / "tokenizer.json", starts=kind != "qwen3") + 8
    make_network(kind, vocabulary).to(dtype).save_pretrained(folder)
    return folder


def config_of(folder: Path, **settings: Any) -> TextConfig:
    given: dict[str, Any] = {"max_tokens": 32, "precision": "fp32"} | settings
    entry = TextEncoderConfig(kind="transformers", path=str(folder), **given)
    return TextConfig(encoders=(entry,))


def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def edit_config(**settings: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(found | settings))

    return edit
