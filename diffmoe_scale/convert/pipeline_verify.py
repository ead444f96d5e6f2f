"""What a diffusers folder that was just written answers to a fixed input, block by block: its own code on its
own weights, and no model in memory whole."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # models of diffusers

import torch
from torch import Tensor, nn

from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.pipeline import INDEX, SLOTS
from diffmoe_scale.convert.pipeline_config import has_trained_encoder
from diffmoe_scale.convert.pipeline_import import read_model
from diffmoe_scale.convert.verify import Question, build_meta, make_condition
from diffmoe_scale.json_text import parse_json

EXPERTS = ("StackedLinear", "FeedForward")


@torch.no_grad()
def ask_folder(folder: Path, config: Config, question: Question) -> Tensor:
    """The transformer's output [B, C, H, W], its text encoder's features before."""
    index = parse_json((folder / INDEX).read_text(encoding="utf-8"))
    tensors, _ = read_model(folder / "transformer")
    model = _build(folder / "transformer", index["transformer"])
    weights = _Weights(model, tensors)
    weights.fill_by_block()
    # Shapes alone: ids and features are drawn as for the source.
    vocabulary = _vocabulary(folder, config) if has_trained_encoder(config) else {}
    condition = make_condition(config, build_meta(config, vocabulary), question)
    texts = [] if condition.text is None else list(condition.text.streams)
    text = [(stream.tokens_BLT, stream.mask_BL, stream.pooled_BV) for stream in texts]
    if condition.tokens_BL is not None:
        mask_BL = condition.tokens_BL != 0
        encoder = _text_encoder(folder, index, config)
        features_BLT, pooled_BV = encoder(condition.tokens_BL, mask_BL)
        text.insert(config.text.trained_stream, (features_BLT, mask_BL, pooled_BV))
    output = model(
        question.x_BCHW,
        question.t_B,
        text=text,
        class_labels=condition.labels_B,
        sizes=condition.sizes_BZ,
        dropped=condition.dropped_B,
        selection=config.sampling.selection,
        gamma=config.sampling.gamma,
        return_dict=False,
    )
    answer_BCHW: Tensor = output[0]
    return answer_BCHW


def _vocabulary(folder: Path, config: Config) -> dict[str, LazyTensor]:
    tensors, _ = read_model(folder / f"text_encoder{SLOTS[config.text.trained_stream]}")
    return {f"text_encoder.{name}": tensor for name, tensor in tensors.items()}


def _text_encoder(folder: Path, index: Mapping[str, Any], config: Config) -> Any:
    name = f"text_encoder{SLOTS[config.text.trained_stream]}"
    model = _build(folder / name, index[name])
    _Weights(model, read_model(folder / name)[0]).fill(*model.modules())
    return model


def _build(folder: Path, kind: list[str]) -> Any:
    """A model on `meta`, by the code that lies beside its config.json."""
    module, name = kind
    spec = importlib.util.spec_from_file_location(module, folder / f"{module}.py")
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules[module] = code  # dataclasses look their module up
    try:
        spec.loader.exec_module(code)
        tree = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        given = {key: value for key, value in tree.items() if not key.startswith("_")}
        with torch.device("meta"):
            return getattr(code, name)(**given).eval()
    finally:
        del sys.modules[module]


class _Weights:
    """Puts tensors in the place of a model's own on `meta`, in fp32, and takes them away again."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, LazyTensor]) -> None:
        self.model, self.tensors = model, tensors
        self.names = {id(module): name for name, module in model.named_modules()}
        expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        held = {name: tensor.shape for name, tensor in tensors.items()}
        assert held == expected, sorted(set(held.items()) ^ set(expected.items()))[:3]

    def fill_by_block(self) -> None:
        """All but the blocks now; a block when it is called, its experts when they are."""
        model: Any = self.model
        blocks = {id(module) for block in model.blocks for module in block.modules()}
        self.fill(*(module for module in model.modules() if id(module) not in blocks))
        for block in model.blocks:
            experts = {id(part) for part in block.modules() if type(part).__name__ in EXPERTS}
            inner = {id(part) for part in block.modules() if self._is_in(part, experts)}
            outer = [part for part in block.modules() if id(part) not in inner]
            self._hook(block, outer)
            for part in block.modules():
                if id(part) in experts:
                    self._hook(part, list(part.modules()))

    def _is_in(self, part: nn.Module, experts: set[int]) -> bool:
        name = self.names[id(part)]
        starts = [self.names[expert] for expert in experts]
        return any(name == start or name.startswith(f"{start}.") for start in starts)

    def _hook(self, module: nn.Module, parts: list[nn.Module]) -> None:
        module.register_forward_pre_hook(lambda *_: self.fill(*parts))
        module.register_forward_hook(lambda *_: self.release(*parts))

    def fill(self, *modules: nn.Module) -> None:
        for module in modules:
            for key, own in module._parameters.items():
                if own is not None:
                    name = f"{self.names[id(module)]}.{key}".lstrip(".")
                    values = self.tensors[name].read().to(own.dtype)
                    module._parameters[key] = nn.Parameter(values, requires_grad=False)

    def release(self, *modules: nn.Module) -> None:
        for module in modules:
            for key, own in module._parameters.items():
                if own is not None:
                    module._parameters[key] = nn.Parameter(own.to("meta"), requires_grad=False)
