"""Models of the DiT family to ours and back: DiT, SiT, and the DiffMoE reference with its siblings."""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.convert.dit import POSITIONS, Shapes, check_names, dit_rules, threshold_names
from diffmoe_scale.nn.embeddings import position_embedding

State = Mapping[str, LazyTensor]
MANY_UPDATES = 100_000
"""The count of updates that thresholds come with: by then their average has forgotten that it began at 0."""
ROUND_OFF = 1e-5


def to_ours(
    state: State, shapes: Shapes, *, is_flow: bool
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Our weights and thresholds of their tensors.

    Raises: ValueError naming tensors that are missing, left over or of another shape, or positions that are
    no sines and cosines.
    """
    rules = dit_rules(shapes, is_flow=is_flow)
    thresholds = [threshold_names(block) for block in shapes.moe_blocks if shapes.router == "diffmoe"]
    expected = {name for rule in rules for name in rule.theirs}
    expected |= {name for names in thresholds for name in names[2:]}
    check_names(state, expected | ({POSITIONS} & state.keys()))
    if POSITIONS in state:
        _check_positions(state[POSITIONS].read(), shapes)
    weights = {rule.ours: rule.forward([state[name] for name in rule.theirs]) for rule in rules}
    buffers: dict[str, LazyTensor] = {}
    for ours, steps, theirs, _ in thresholds:
        buffers |= {ours: state[theirs], steps: LazyTensor.of(torch.tensor(MANY_UPDATES))}
    return weights, buffers


def to_theirs(
    weights: State, buffers: State, shapes: Shapes, *, is_flow: bool, decay: float
) -> dict[str, LazyTensor]:
    """Their tensors of our weights and thresholds. Raises: ValueError naming tensors."""
    rules = dit_rules(shapes, is_flow=is_flow)
    check_names(weights, [rule.ours for rule in rules])
    state: dict[str, LazyTensor] = {}
    if shapes.grid:
        positions_ND = position_embedding(shapes.grid, shapes.grid, shapes.width)
        state[POSITIONS] = LazyTensor.of(positions_ND.unsqueeze(0))
    for rule in rules:
        state |= zip(rule.theirs, rule.backward(weights[rule.ours]), strict=True)
    for block in shapes.moe_blocks if shapes.router == "diffmoe" else ():
        ours, _, theirs, constant = threshold_names(block)
        if ours not in buffers:
            raise ValueError(f"tensor {ours} is missing")
        state |= {theirs: buffers[ours], constant: LazyTensor.of(torch.tensor([decay]))}
    return state


def find_rest(state: State, back: State) -> dict[str, LazyTensor]:
    """The tensors that do not come back to the bit by way of ours: what is kept beside our weights so that
    they do."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name not in back or (tensor.read is not back[name].read and not _is_equal(tensor, back[name]))
    }


def restore_rest(
    theirs: State, rest: State, weights: State, shapes: Shapes, *, is_flow: bool
) -> dict[str, LazyTensor]:
    """`theirs` with the tensors of `rest`, as long as they still say what our weights do."""
    state = dict(theirs)
    rules = {name: rule for rule in dit_rules(shapes, is_flow=is_flow) for name in rule.theirs}
    for name, tensor in rest.items():
        if name not in state:
            continue
        rule = rules.get(name)
        if rule is None:
            state[name] = tensor
        elif _is_equal(rule.forward([tensor]).to(weights[rule.ours].dtype), weights[rule.ours]):
            state[name] = tensor.to(weights[rule.ours].dtype)
    return state


def _is_equal(one: LazyTensor, other: LazyTensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(_bits(one.read()), _bits(other.read()))


def _bits(tensor: Tensor) -> Tensor:
    """Also NaN is equal to itself, and 0 is not -0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _check_positions(positions: Tensor, shapes: Shapes) -> None:
    expected_ND = position_embedding(shapes.grid, shapes.grid, shapes.width)
    if tuple(positions.shape) != (1, *expected_ND.shape):
        raise ValueError(f"{POSITIONS} has shape {list(positions.shape)}; expected {[1, *expected_ND.shape]}")
    off = (positions.float() - expected_ND).abs().max().item()
    tolerance = ROUND_OFF if positions.dtype == torch.float32 else 1e-2
    if not off <= tolerance:
        raise ValueError(
            f"{POSITIONS} differs by {off:.3g} from the sines and cosines of DiT; ours has no learned "
            "positions"
        )
