"""The modules of a DiffMoE checkout (github.com/KwaiVGI/DiffMoE), built and given our weights."""

import importlib
import io
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any  # the reference carries no types

import torch
from torch import nn

from diffmoe_scale.bench.options import StepOptions
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.convert.dit import POSITIONS, PREFIX, THRESHOLD, Shapes
from diffmoe_scale.convert.reference import to_theirs
from diffmoe_scale.model.transformer import DiffusionTransformer
from diffmoe_scale.moe.layer import MoELayer

PACKAGE = "diffmoe_reference"
"""The name under which the checkout's `models` folder is imported."""
FILES = ("models/models_DiffMoE.py", "models/modules.py")
CLASSES = ("SparseMoEBlock", "Mlp", "DiT")
EXPERT_NAMES = {"w_in": "fc1.weight", "b_in": "fc1.bias", "w_out": "fc2.weight", "b_out": "fc2.bias"}
DECAY = 0.95
RARELY = 1e-9
"""Share of dropped labels: 0 would leave out the row of the null class, which ours has."""


@dataclass(frozen=True)
class ReferenceModules:
    """What a checkout defines."""

    layer: Any
    network: Any
    model: Any

    @classmethod
    def check(cls, folder: Path) -> Path:
        """The folder. Raises: ValueError if the reference's files are not in it."""
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} has no {' and no '.join(missing)}; expected a checkout of the DiffMoE reference "
                "(git clone https://github.com/KwaiVGI/DiffMoE)"
            )
        return folder

    @classmethod
    def load(cls, folder: Path) -> "ReferenceModules":
        """Import the checkout's modules, which runs its code.

        Raises: ValueError if it is not the reference or one of its packages is missing.
        """
        package = ModuleType(PACKAGE)
        package.__path__ = [str(cls.check(folder) / "models")]
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules[PACKAGE] = package
        try:
            module = importlib.import_module(f"{PACKAGE}.models_DiffMoE")
        except (ImportError, SyntaxError) as error:
            raise ValueError(
                f"{folder / FILES[0]} cannot be imported: {error}; install what it needs (timm), or "
                "check out the reference anew"
            ) from error
        missing = [name for name in CLASSES if not hasattr(module, name)]
        if missing:
            raise ValueError(
                f"{folder / FILES[0]} defines no {', '.join(missing)}; expected the DiffMoE reference"
            )
        return cls(*(getattr(module, name) for name in CLASSES))


class MoESettings(dict[str, Any]):
    """The reference's MoE_config: an omegaconf node, read by attribute and by `get`."""

    def __getattr__(self, name: str) -> object:
        return self[name]


def build_reference_layer(reference: ReferenceModules, *, width: int, num_experts: int) -> nn.Module:
    """Its MoE layer, without a shared expert, capacity 1."""
    experts = [
        reference.network(
            in_features=width,
            hidden_features=4 * width,
            act_layer=lambda: nn.GELU(approximate="tanh"),
            drop=0,
        )
        for _ in range(num_experts)
    ]
    layer: nn.Module = reference.layer(
        experts=experts, hidden_dim=width, num_experts=num_experts, n_shared_experts=0, capacity=1
    )
    return layer


def build_reference_model(
    reference: ReferenceModules,
    sizes: StepOptions,
    *,
    channels: int,
    patch: int,
    classes: int,
    num_experts: int,
) -> nn.Module:
    """Its class-conditional model, with experts in every second block."""
    settings = MoESettings(
        num_experts=num_experts, capacity=1, n_shared_experts=0, interleave=True, init_MoeMLP=False
    )
    # Its constructor prints.
    with redirect_stdout(io.StringIO()):
        model: nn.Module = reference.model(
            input_size=sizes.latent_size,
            patch_size=patch,
            in_channels=channels,
            hidden_size=sizes.width,
            depth=sizes.depth,
            num_heads=max(1, sizes.width // 64),
            class_dropout_prob=RARELY,
            num_classes=classes,
            learn_sigma=False,
            MoE_config=settings,
        )
    return model.train()


@torch.no_grad()
def copy_layer(ours: MoELayer, theirs: nn.Module) -> None:
    """Give the reference's layer our weights and thresholds."""
    predictor = ours.router.predictor
    state = {
        "gate_weight": ours.router.weight,
        "capacity_predictor.0.weight": predictor.hidden.weight,
        "capacity_predictor.0.bias": predictor.hidden.bias,
        "capacity_predictor.2.weight": predictor.output.weight,
        "capacity_predictor.2.bias": predictor.output.bias,
        THRESHOLD: predictor.threshold(),
        "ema_decay": torch.tensor([DECAY]),
    }
    for name, parameter in ours.expert_parameters():
        _, index, kind = name.split(".")
        state[f"experts.{index}.{EXPERT_NAMES[kind]}"] = parameter
    theirs.load_state_dict(state)


@torch.no_grad()
def copy_model(ours: DiffusionTransformer, theirs: nn.Module) -> None:
    """Give the reference's model our weights."""
    layers = ours.moe_layers()
    names = {id(layer): name for name, layer in ours.named_modules()}
    experts = {
        f"{names[id(layer)]}.{name}": parameter
        for layer in layers
        for name, parameter in layer.expert_parameters()
    }
    stacked = {id(parameter) for layer in layers for parameter in layer.experts.parameters()}
    plain = {name: p for name, p in ours.named_parameters() if id(p) not in stacked}
    weights = {f"{PREFIX}{name}": LazyTensor.of(p.detach()) for name, p in (plain | experts).items()}
    buffers = {f"{PREFIX}{name}": LazyTensor.of(buffer) for name, buffer in ours.named_buffers()}
    state = to_theirs(weights, buffers, model_shapes(ours), is_flow=False, decay=DECAY)
    theirs.load_state_dict({name: tensor.read() for name, tensor in state.items()})
    assert POSITIONS in state


def model_shapes(model: DiffusionTransformer) -> Shapes:
    """What the converter is to know of our model. Patches of a side come from the reference's positions."""
    width = model.patch_embedding.weight.shape[0]
    channels = model.patch_embedding.weight.shape[1] // model.patch**2
    layers = model.moe_layers()
    assert model.class_embedding is not None
    return Shapes(
        width=width,
        depth=len(model.blocks),
        patch=model.patch,
        channels=channels,
        outputs=channels,
        classes=model.class_embedding.num_embeddings - 1,
        grid=model.base,
        dense_width=4 * width,
        is_gated=False,
        num_experts=len(list(layers[0].local_expert_indices)),
        expert_width=4 * width,
        moe_blocks=tuple(i for i, block in enumerate(model.blocks) if block.feed_forward in layers),
    )
