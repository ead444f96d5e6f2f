"""Networks of transformers as text encoders: which are known, how large they are, and how one is built that
ends at a chosen layer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any  # Any: transformers' configs and networks, whose attributes differ

from torch import Tensor, nn

from diffmoe_scale.encoders.text.folder import CONFIG_FILE, ModelFolder

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ENCODERS = ("t5", "umt5", "t5gemma")
"""Read in both directions."""
SENTENCEPIECE = ("t5", "umt5")
"""Their tokenizer is a sentencepiece model."""
DECODERS = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
"""A token sees those before it."""
KNOWN = (*ENCODERS, *DECODERS)
MOST_LAYERS = 1000


@dataclass(frozen=True)
class Architecture:
    """What a config.json describes."""

    model_type: str
    config: "PretrainedConfig"
    """Of the whole network."""
    width: int
    depth: int
    vocabulary: int
    positions: int
    """Tokens that it reads at most; 0 for positions that are relative."""


def read_architecture(folder: ModelFolder) -> Architecture:
    """Raises: ValueError for an architecture that is not known, and settings that describe none."""
    model_type = folder.model_type
    if model_type not in KNOWN:
        raise folder.error(
            f"its {CONFIG_FILE} describes a {model_type!r} model; expected one of {', '.join(KNOWN)}"
        )
    try:
        _check_depth(folder.settings)
        config = _config_class(model_type).from_dict(dict(folder.settings))
        text = _text_config(config, model_type)
        positions = 0 if model_type in SENTENCEPIECE else int(text.max_position_embeddings)
        return Architecture(
            model_type,
            config,
            width=_positive(text.hidden_size),
            depth=_positive(text.num_hidden_layers),
            vocabulary=_positive(text.vocab_size),
            positions=positions,
        )
    except Exception as error:  # transformers checks little, and each class in its own way
        raise folder.error(
            f"its {CONFIG_FILE} describes no {model_type} model ({_one_line(error)})"
        ) from error


def _check_depth(settings: Mapping[str, Any]) -> None:  # JSON
    """Raises: ValueError for more layers than a model has: transformers lists them before it checks any."""
    for part in (settings, settings.get("encoder"), settings.get("decoder")):
        for name in ("num_layers", "num_hidden_layers", "num_decoder_layers"):
            value = part.get(name, 1) if isinstance(part, dict) else 1
            if not isinstance(value, int | None) or (value or 1) > MOST_LAYERS:
                raise ValueError(f"{name} is {value!r:.80}; expected a whole number up to {MOST_LAYERS}")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"


def _positive(value: Any) -> int:  # JSON
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise ValueError(f"{value!r:.80} where a whole number above 0 was expected")
    return value


def _text_config(config: Any, model_type: str) -> Any:
    """The settings of the layers: encoder and decoder of a T5Gemma have their own."""
    return config.encoder if model_type == "t5gemma" else config


def _config_class(model_type: str) -> Any:
    import transformers  # seconds, and needed by few

    match model_type:
        case "t5":
            return transformers.T5Config
        case "umt5":
            return transformers.UMT5Config
        case "t5gemma":
            return transformers.T5GemmaConfig
        case "gemma":
            return transformers.GemmaConfig
        case "gemma2":
            return transformers.Gemma2Config
        case "gemma3_text":
            return transformers.Gemma3TextConfig
        case "llama":
            return transformers.LlamaConfig
        case "mistral":
            return transformers.MistralConfig
        case "qwen2":
            return transformers.Qwen2Config
        case "qwen3":
            return transformers.Qwen3Config


def _network_class(model_type: str) -> Any:
    import transformers

    match model_type:
        case "t5":
            return transformers.T5EncoderModel
        case "umt5":
            return transformers.UMT5EncoderModel
        case "t5gemma":
            return transformers.T5GemmaEncoderModel
        case "gemma":
            return transformers.GemmaModel
        case "gemma2":
            return transformers.Gemma2Model
        case "gemma3_text":
            return transformers.Gemma3TextModel
        case "llama":
            return transformers.LlamaModel
        case "mistral":
            return transformers.MistralModel
        case "qwen2":
            return transformers.Qwen2Model
        case "qwen3":
            return transformers.Qwen3Model


def build_network(folder: ModelFolder, architecture: Architecture, *, layer: int) -> nn.Module:
    """The network up to `layer` (1 to depth), its parameters on `meta`; ids and mask to hidden states. The
    final norm is there if the layer is the last.

    Raises: ValueError for settings that do not make a network.
    """
    try:
        # Read anew: the config is changed.
        config = _config_class(architecture.model_type).from_dict(dict(folder.settings))
        text = _text_config(config, architecture.model_type)
        text.num_hidden_layers = layer
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layer]
        config.is_encoder_decoder = False
        with _parameters_on_meta():
            network: nn.Module = _network_class(architecture.model_type)(config)
    except Exception as error:  # of any type: each class of transformers checks its settings in its own way
        raise folder.error(
            f"its {CONFIG_FILE} makes no {architecture.model_type} model ({_one_line(error)})"
        ) from error
    if layer < architecture.depth:
        module_name, _, norm = _final_norm(architecture.model_type).rpartition(".")
        setattr(network.get_submodule(module_name), norm, nn.Identity())
    return network


def _final_norm(model_type: str) -> str:
    match model_type:
        case "t5" | "umt5":
            return "encoder.final_layer_norm"
        case "t5gemma":
            return "encoder.norm"
        case _:
            return "norm"


def hidden_states(network: nn.Module, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """What the last layer of the network gives, [B, L, T]."""
    # A decoder would keep keys and values of all layers.
    options = {"use_cache": False} if hasattr(network, "layers") else {}
    states_BLT: Tensor = network(input_ids=ids_BL, attention_mask=mask_BL.long(), **options).last_hidden_state
    return states_BLT


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters that are made inside take no memory. Buffers are real: those that no file holds (rotary
    frequencies, scales of embeddings) are computed by the constructors, and `meta` would lose them."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    # For the constructor alone; mypy takes methods for constants.
    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def check_layer(layer: int, architecture: Architecture, setting: str) -> int:
    """The number of a layer, 1 to depth, that may be given from the end. Raises: ValueError beyond them."""
    number = layer if layer > 0 else architecture.depth + 1 + layer
    if not 1 <= number <= architecture.depth:
        raise ValueError(
            f"{setting} is {layer}; expected 1 to {architecture.depth}, or -1 to -{architecture.depth}: "
            f"the {architecture.model_type} model has {architecture.depth} layers"
        )
    return number
