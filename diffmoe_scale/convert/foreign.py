"""Models of the DiT family as files: to weights of ours, what they answer, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any  # arguments of trainings

import torch
from torch import Tensor

from diffmoe_scale.checkpoint.stored import FAMILIES, StoredWeights
from diffmoe_scale.checkpoint.tensor_file import CODES, LazyTensor, read_files
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.dit import STEPS, THRESHOLD, Shapes, is_dit, read_shapes
from diffmoe_scale.convert.dit_config import make_dit_config, shapes_of_config
from diffmoe_scale.convert.plain import PlainDiT
from diffmoe_scale.convert.reference import find_rest, restore_rest, to_ours, to_theirs
from diffmoe_scale.convert.torch_file import TorchFile, read_torch_file, without_wrappers
from diffmoe_scale.convert.verify import Question
from diffmoe_scale.diffusion.objective import build_objective

NO_FILE = Path("no file")
SHOWN = 5


@dataclass(frozen=True)
class ForeignModel:
    """A model of the DiT family on disk, and the settings that it has as one of ours."""

    path: Path
    file: TorchFile
    shapes: Shapes
    config: Config

    @property
    def is_flow(self) -> bool:
        return self.config.diffusion.kind == "flow"

    def only(self, family: str) -> "ForeignModel":
        """The model with one family of weights. Raises: ValueError if it is not there."""
        if family not in self.file.states:
            raise ValueError(f"--weights is {family!r}; {self.path} holds {', '.join(self.file.states)}")
        return replace(self, file=replace(self.file, states={family: self.file.states[family]}))

    def answer(self, family: str, question: Question) -> Tensor:
        """A family's output, with the thresholds that ours has: of both families those of `master`."""
        return ask_foreign(self.file.states, family, self.shapes, self.config, question)


def open_foreign(path: Path, settings: Sequence[str]) -> ForeignModel:
    """A training checkpoint or a state dict of torch.save, or a safetensors file.

    Raises: ValueError naming what it is, or what a model of ours cannot have.
    """
    if path.suffix == ".safetensors" or path.is_dir():
        file = TorchFile({"ema": without_wrappers(path, read_files(path)[1])})
    else:
        file = read_torch_file(path)
    for name, state in file.states.items():
        if not is_dit(state):
            raise ValueError(f"{path} {_describe(name if len(file.states) > 1 else '', state)}")
        for key, tensor in state.items():
            if tensor.dtype not in CODES or not tensor.dtype.is_floating_point:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ValueError(f"{path}: {key} is {kind}; expected float32, float16, bfloat16 or float64")
    state = file.states["ema"]
    try:
        shapes = read_shapes(state)
        config = make_dit_config(shapes, settings, file.arguments or {})
        for other in file.states.values():
            to_ours(other, shapes, is_flow=config.diffusion.kind == "flow")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return ForeignModel(path, file, shapes, config)


def _describe(family: str, state: Mapping[str, LazyTensor]) -> str:
    """What a file is that holds no model of the DiT family."""
    if any(".lora_" in name for name in state):
        return "is a LoRA: additions to the weights of a model, and no model; add them to its weights first"
    if any(name.startswith(tuple(f"{one}/" for one in FAMILIES)) for name in state):
        return (
            "has names of this program but no settings in its metadata, which were lost when it was saved "
            "again; give the file as convert_checkpoint wrote it"
        )
    prefix = f"{next(iter(state), '').partition('.')[0]}."
    if all(name.startswith(prefix) for name in state) and is_dit(
        {name.removeprefix(prefix) for name in state}
    ):
        return f"has names that all begin with {prefix!r}; save its state dict without that"
    where = f"its {family}" if family else "it"
    return (
        f"is no model that is known here: {where} has such names as {', '.join(list(state)[:SHOWN])}; "
        "expected those of DiT, SiT or DiffMoE (x_embedder.proj.weight, blocks.0.attn.qkv.weight, ...)"
    )


def import_foreign(model: ForeignModel) -> StoredWeights:
    """Its weights as ours; `source/` holds what does not come back to the bit, and `origin` what it was."""
    tensors: dict[str, LazyTensor] = {}
    buffers: dict[str, LazyTensor] = {}
    for family, state in model.file.states.items():
        weights, held = to_ours(state, model.shapes, is_flow=model.is_flow)
        # The reference averages thresholds, too. Ours has them once, and trains on with those of the weights.
        buffers = buffers or held
        back = to_theirs(
            weights,
            buffers,
            model.shapes,
            is_flow=model.is_flow,
            decay=model.config.moe.threshold_decay,
        )
        tensors |= {f"{family}/{name}": tensor for name, tensor in weights.items()}
        rest = find_rest(state, back)
        tensors |= {f"source/{family}/{name}": tensor for name, tensor in rest.items()}
    tensors |= {f"buffer/{name}": tensor for name, tensor in buffers.items()}
    return StoredWeights(
        path=model.path,
        tensors=dict(sorted(tensors.items())),
        config=model.config,
        settings=model_settings(model.config, tokenizer=NO_FILE, frozen={}),
        origin={
            "outputs": model.shapes.outputs,
            "has_positions": model.shapes.grid > 0,
            "arguments": _plain(model.file.arguments),
        },
    )


def export_foreign(stored: StoredWeights) -> dict[str, dict[str, LazyTensor]]:
    """State dicts of the DiT family by family of weights. Raises: ValueError if they cannot hold the
    model."""
    config, origin = stored.config, stored.origin
    shapes = shapes_of_config(config, outputs=int(origin.get("outputs", 0)))
    if not origin.get("has_positions", True):
        shapes = replace(shapes, grid=0)
    is_flow = config.diffusion.kind == "flow"
    states = {}
    families = [name for name in stored.families if name != "buffer"]
    if "ema2" in families and len(families) > 1:
        raise ValueError("a .pt file holds ema and master and no second average; give --weights ema2 for it")
    for family in families:
        weights, buffers = stored.family(family), _used_thresholds(stored)
        decay = config.moe.threshold_decay
        state = to_theirs(weights, buffers, shapes, is_flow=is_flow, decay=decay)
        rest = stored.family(f"source/{family}")
        states[family] = restore_rest(state, rest, weights, shapes, is_flow=is_flow)
    return states


def _used_thresholds(stored: StoredWeights) -> dict[str, LazyTensor]:
    """Thresholds as they are held against probabilities: the family has no correction of their start."""
    buffers, moe = stored.family("buffer"), stored.config.moe
    if not moe.threshold_bias_correction:
        return buffers
    for name in [name for name in buffers if name.endswith("expert_threshold_E")]:
        steps = buffers[name.replace("expert_threshold_E", STEPS)].read().double()
        weight = torch.where(steps > 0, 1 - moe.threshold_decay**steps, torch.inf)
        buffers[name] = LazyTensor.of((buffers[name].read() / weight).float())
    return buffers


@torch.no_grad()
def ask_foreign(
    states: Mapping[str, Mapping[str, LazyTensor]],
    family: str,
    shapes: Shapes,
    config: Config,
    question: Question,
) -> Tensor:
    """What a family of a foreign model answers, in our terms: at our t, as our velocity (or noise and sigma).
    With two families, the thresholds are those of the first for both."""
    first, *_ = states.values()
    thresholds = {name: tensor for name, tensor in first.items() if name.endswith(THRESHOLD)}
    state = {**states[family], **thresholds}
    plain = PlainDiT(
        state,
        shapes,
        heads=config.model.heads,
        capacity=config.moe.capacity,
        top_k=config.moe.top_k,
    )
    if config.diffusion.kind == "flow":
        output = plain(question.x_BCHW, 1 - question.t_B, question.labels_B)
        return -output[:, : shapes.channels]
    time_B = build_objective(config.diffusion).embedding_time(question.t_B)
    return plain(question.x_BCHW, time_B, question.labels_B)


def _plain(arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What JSON can hold of the arguments of a training; the rest as text."""
    if arguments is None:
        return None
    kinds = (str, int, float, bool, type(None))
    return {key: value if isinstance(value, kinds) else str(value) for key, value in arguments.items()}
