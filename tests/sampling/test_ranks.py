"""Pictures of several ranks: bitwise those of one, uneven counts, and no rank that waits for ever."""

from pathlib import Path

import numpy as np
import pytest

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.batch import number_requests
from diffmoe_scale.sampling.loading import Pipeline, other_experts
from diffmoe_scale.sampling.output import choose_output, write_pictures
from diffmoe_scale.sampling.ranks import Ranks
from tests.ranks import run_on_ranks
from tests.train.runs import tiny_config, tiny_pipeline

LABELS = [0, 1, 2, 3, 4]
SAMPLERS = {
    "euler": ["sampling.steps=3", "sampling.fresh_noise=0.5"],
    "heun": ["sampling.sampler=heun", "sampling.steps=3"],
    "dopri5": ["sampling.sampler=dopri5", "sampling.tolerance=0.1", "sampling.guidance_end=0.5"],
}


def draw(context: ParallelContext, folder: Path, settings: list[str]) -> list[list[str]]:
    """NAME.npz in the folder for each sampler; the lines that were said."""
    said = []
    for name, words in SAMPLERS.items():
        config = tiny_config([*settings, *words, "diffusion.time_scale=10"])
        networks = tiny_pipeline(config, context.megatron_groups)
        pipeline = Pipeline(networks, config, RunDirectory(folder), folder, 1, context=context)
        requests = number_requests(LABELS, seed=3)
        output = choose_output(folder / f"{name}.npz", None, num_pictures=len(requests))
        said.append(write_pictures(pipeline, requests, output, default=folder, columns=4))
    return said


def pictures(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for name in SAMPLERS:
        with np.load(folder / f"{name}.npz") as archive:
            found[name] = archive["arr_0"]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("alone")
    run_on_ranks(draw, 1, folder, ["sampling.batch_invariant=true"])
    return pictures(folder)


@pytest.mark.parametrize("ranks", [2, 4])
def test_pictures_of_many_ranks_are_bitwise_those_of_one(
    ranks: int, alone: dict[str, np.ndarray], tmp_path: Path
) -> None:
    settings = ["sampling.batch_invariant=true", "sampling.batch=2"]
    main, *others = run_on_ranks(draw, ranks, tmp_path, settings)
    assert all("5 pictures" in line for (line,) in main) and all(said == [[]] * 3 for said in others)
    for name, found in pictures(tmp_path).items():
        assert np.array_equal(found, alone[name]), name
        assert len({picture.tobytes() for picture in found}) == 5


@pytest.mark.parametrize("is_invariant", ["true", "false"])
def test_ranks_that_share_experts_draw_uneven_counts_to_the_end(
    is_invariant: str, alone: dict[str, np.ndarray], tmp_path: Path
) -> None:
    settings = [f"sampling.batch_invariant={is_invariant}", "sampling.batch=2", "parallel.expert_parallel=2"]
    run_on_ranks(draw, 2, tmp_path, settings, expert_parallel=2)
    for name, found in pictures(tmp_path).items():
        # Experts see the rows of both ranks at once: sums are rounded otherwise.
        assert np.abs(found.astype(int) - alone[name]).max() <= 1, name


def ask(context: ParallelContext) -> list[object]:
    ranks = Ranks(context)
    shares = [ranks.share(range(count)) for count in (5, 4, 1, 0)]
    answers: list[object] = [[(share.places, share.count) for share in shares]]
    answers.append(ranks.of_main(lambda: f"from {context.rank}"))

    def fail() -> None:
        raise ValueError("only the main rank saw it")

    try:
        ranks.of_main(fail)
    except ValueError as error:
        answers.append(str(error))
    return [*answers, ranks.gather(context.rank)]


def test_places_are_dealt_in_turn_and_what_the_main_rank_finds_or_refuses_is_for_all() -> None:
    first, second = run_on_ranks(ask, 2)
    assert first[0] == [([0, 2, 4], 3), ([0, 2], 2), ([0], 1), ([], 0)]
    assert second[0] == [([1, 3], 2), ([1, 3], 2), ([], 0), ([], 0)]
    assert first[1:] == second[1:] == ["from 0", "only the main rank saw it", [0, 1]]


def test_ranks_that_share_experts_have_equally_many() -> None:
    first, second = run_on_ranks(ask, 2, expert_parallel=2)
    assert first[0] == [([0, 2, 4], 3), ([0, 2], 2), ([0], 1), ([], 0)]
    assert second[0] == [([1, 3], 3), ([1, 3], 2), ([], 1), ([], 0)]


def test_experts_of_other_ranks_are_named() -> None:
    names = ["blocks.1.moe.experts.2.w_in", "blocks.1.moe.experts.3.w_in", "blocks.1.moe.router.weight"]
    assert other_experts(names, num_experts=4) == {
        "blocks.1.moe.experts.0.w_in",
        "blocks.1.moe.experts.1.w_in",
    }
    assert other_experts(names, num_experts=0) == set()
