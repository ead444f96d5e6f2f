import numpy as np
import pytest
import torch
from torch import Tensor

from diffmoe_scale.config.load import load_config
from diffmoe_scale.model.matrices import Stack
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.muon import Muon, newton_schulz, orthogonalize, update_scale
from tests.ranks import run_on_ranks
from tests.train.plain_muon import plain_newton_schulz


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one_and_singular_vectors_stay(precision: torch.dtype) -> None:
    rotations = [torch.linalg.qr(draw(24, 24, seed=seed))[0] for seed in (1, 2)]
    lengths = torch.logspace(0, -2, 24)
    answer = newton_schulz((rotations[0] * lengths @ rotations[1].T)[None], precision)[0]
    turned_back = rotations[0].T @ answer @ rotations[1]
    # The band of the polynomial; bf16 keeps 8 bits.
    slack = 1e-5 if precision == torch.float32 else 0.05
    assert turned_back.diagonal().min() > 0.68 - slack and turned_back.diagonal().max() < 1.21 + slack
    assert (turned_back - turned_back.diagonal().diag()).abs().max() < slack


@pytest.mark.parametrize("length", [1e-30, 1e-8, 1e8, 1e30])
def test_length_of_a_gradient_does_not_matter(length: float) -> None:
    matrix = draw(1, 8, 16)
    torch.testing.assert_close(
        newton_schulz(length * matrix, torch.float32), newton_schulz(matrix, torch.float32)
    )


def test_matrix_of_zeros_stays_one() -> None:
    assert not newton_schulz(torch.zeros(2, 4, 4), torch.bfloat16).any()


def test_matrices_of_many_shapes_are_each_as_a_plain_loop_makes_it() -> None:
    shapes = [(8, 32), (32, 8), (8, 8), (32, 8), (12, 8), (8, 32)]
    matrices = {10 * number: draw(*shape, seed=number) for number, shape in enumerate(shapes)}
    answers = orthogonalize(matrices, torch.float32)
    assert answers.keys() == matrices.keys()
    for number, matrix in matrices.items():
        torch.testing.assert_close(answers[number], plain_newton_schulz(matrix), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (6, 1), (1, 4)], ids=str)
def test_rms_steps_are_as_long_at_two_widths(shape: tuple[int, int]) -> None:
    """The root mean square of the update is 0.2 of the rate, but for the band of Newton-Schulz."""
    for width in (32, 128):
        rows, columns = shape[0] * width, shape[1] * width
        update = (
            update_scale(rows, columns, rule="rms")
            * orthogonalize({0: draw(rows, columns)}, torch.float32)[0]
        )
        assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (4, 1), (1, 4)], ids=str)
def test_spectral_steps_move_outputs_as_far_at_two_widths(shape: tuple[int, int]) -> None:
    """The gradient of a sample is an outer product, and so is its update: what the layer then adds to its
    answer to the same sample has a root mean square of one, for an input of one."""
    for width in (32, 128):
        rows, columns = shape[0] * width, shape[1] * width
        x, gradient_y = draw(columns, seed=1), draw(rows, seed=2)
        x = x / x.square().mean().sqrt()
        update = orthogonalize({0: gradient_y[:, None] * x}, torch.float32)[0]
        moved = update_scale(rows, columns, rule="spectral") * update @ x
        # A singular value of one becomes 0.70 in five iterations.
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.70, rel=0.01)


SHAPES = [(4, 6), (6, 4), (8, 8), (4, 4), (4, 4)]
STARVED = 2
"""The matrix without a gradient in the second step. Slices of four ranks cut it."""


def two_steps(context: ParallelContext, world_size: int, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """This rank's slice of the weights after two steps: in the first all matrices have a gradient."""
    settings = ["optimizer.kind=muon", "optimizer.muon_precision=fp32", "optimizer.learning_rate=0.1"]
    total = sum(rows * columns for rows, columns in SHAPES)
    share = -(-total // world_size)
    place = slice(context.rank * share, (context.rank + 1) * share)
    gradients = [draw(share * world_size, seed=seed) for seed in (1, 2)]
    first = sum(rows * columns for rows, columns in SHAPES[:STARVED])
    gradients[1][first : first + 64] = 0
    master = torch.nn.Parameter(draw(share * world_size, seed=3)[place].clone())
    stacks = [Stack(1, *shape) for shape in SHAPES[:3]] + [Stack(2, 4, 4)]
    optimizer = Muon(
        [{"params": [master], "stacks": stacks, "weight_decay": decay}],
        load_config(None, settings).optimizer,
        device=context.device,
        dp_group=context.dp_group,
        expert_dp_group=context.expert_dp_group,
    )
    answers = []
    for gradient in gradients:
        master.grad = gradient[place].clone()
        optimizer.step()
        answers.append(master.detach().numpy().copy())
    return answers[0], answers[1]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_matrix_without_a_gradient_does_not_move_and_others_do(decay: float) -> None:
    first = sum(rows * columns for rows, columns in SHAPES[:STARVED])
    for world_size in (1, 4):
        answers = run_on_ranks(two_steps, world_size, world_size, decay)
        before, after = (np.concatenate([answer[step] for answer in answers]) for step in (0, 1))
        start = draw(before.size, seed=3).numpy()
        total = sum(rows * columns for rows, columns in SHAPES)
        is_moved = np.ones(total, dtype=bool)
        is_moved[first : first + 64] = False
        np.testing.assert_array_equal((before != after)[:total], is_moved)
        assert (start != before)[:total].all()


def test_slices_of_four_ranks_are_those_of_one() -> None:
    alone, many = (run_on_ranks(two_steps, world_size, world_size, 0.5) for world_size in (1, 4))
    total = sum(rows * columns for rows, columns in SHAPES)
    whole = np.concatenate([answer[1] for answer in many])[:total]
    np.testing.assert_allclose(whole, alone[0][1][:total], rtol=0, atol=1e-6)


def test_setting_of_muon_is_refused_with_adamw() -> None:
    with pytest.raises(
        ValueError, match=r"muon_momentum is 0.9; expected 0.95 unless optimizer.kind is 'muon'"
    ):
        load_config(None, ["optimizer.muon_momentum=0.9"])
