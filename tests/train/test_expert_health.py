import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffmoe_scale.moe.routing import Routing, load_metrics
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.loading import join_ranks
from diffmoe_scale.telemetry.metrics import MetricValue
from diffmoe_scale.train.expert_health import ExpertHealth, Health, write_experts
from tests.ranks import run_on_ranks
from tests.train.runs import tiny_config, tiny_pipeline

EXPERTS = 4
TOKENS = 4
"""A sample's."""


def routing(mask_SE: Tensor, scores_SE: Tensor, prediction_TE: Tensor, taught_T: Tensor | None) -> Routing:
    return Routing(
        mask_SE,
        scores_SE.where(mask_SE, 0.0),
        metrics=load_metrics(mask_SE),
        scores_SE=scores_SE,
        prediction_TE=prediction_TE,
        taught_T=taught_T,
    )


def health_of(
    context: ParallelContext,
    rows: list[list[list[int]]],
    *,
    prediction: float = 0.0,
    taught_T: Tensor | None = None,
) -> Health:
    """Of two samples, the first at the start of the time axis, the second at its end and without condition.
    `rows` of a rank hold the experts of each token."""
    layers = tiny_pipeline(tiny_config([]), context.megatron_groups).denoiser.moe_layers()
    mask_SE = torch.tensor([[expert in row for expert in range(EXPERTS)] for row in rows[context.rank]])
    scores_SE = torch.full((2 * TOKENS, EXPERTS), 0.25)
    taught_mask_TE = mask_SE if taught_T is None else mask_SE[taught_T]
    prediction_TE = torch.where(taught_mask_TE, 5.0, -5.0) + prediction
    for layer in layers:
        layer.router.predictor.expert_threshold_E.fill_(0.5)
        layer.router.predictor.threshold_steps.fill_(10**6)
        layer.router.weight.data[:EXPERTS] = torch.eye(EXPERTS, layer.router.weight.shape[1])
    health = ExpertHealth(layers, context.device)
    health.add(
        [routing(mask_SE, scores_SE, prediction_TE, taught_T) for _ in layers],
        torch.tensor([0, 9]),
        torch.tensor([False, True]),
    )
    found = health.take(context.dp_group)
    assert found is not None and health.take(context.dp_group) is None
    return found


def of_first_layer(health: Health, figure: str) -> float:
    value = health.figures[f"moe/health/{figure}"]
    assert isinstance(value, list)
    return value[0]


def of_tenths(health: Health, figure: str) -> dict[int, MetricValue]:
    names = {f"moe/health/{figure}/{tenth}": tenth for tenth in range(10)}
    return {names[name]: value for name, value in health.figures.items() if name in names}


EACH_ITS_OWN = [[0], [1], [2], [3]] * 2
ALL_THE_SAME = [[0, 1, 2, 3], [], [], []] * 2
ONE_IS_DEAD = [[0], [1], [2], []] * 2


def test_experts_with_tokens_of_their_own_are_all_effective() -> None:
    (health,) = run_on_ranks(health_of, 1, [EACH_ITS_OWN])
    assert of_first_layer(health, "effective_experts") == pytest.approx(4)
    assert of_first_layer(health, "effective_experts_soft") == pytest.approx(4)
    assert of_first_layer(health, "entropy") == pytest.approx(1)
    assert of_first_layer(health, "overlap") == of_first_layer(health, "uncovered") == 0
    assert of_first_layer(health, "experts_a_token_max") == 1
    assert of_first_layer(health, "similarity") == pytest.approx(0)
    assert of_first_layer(health, "router_norm_ratio") == pytest.approx(1)


def test_experts_that_take_the_same_tokens_overlap_and_leave_the_others() -> None:
    (health,) = run_on_ranks(health_of, 1, [ALL_THE_SAME])
    assert of_first_layer(health, "overlap") == pytest.approx(1)
    assert of_first_layer(health, "uncovered") == pytest.approx(0.75)
    assert of_first_layer(health, "experts_a_token_max") == 4


def test_a_dead_expert_has_no_load_and_leaves_the_others_effective() -> None:
    (health,) = run_on_ranks(health_of, 1, [ONE_IS_DEAD])
    assert of_first_layer(health, "effective_experts") == pytest.approx(3, rel=1e-4)
    assert health.figures["moe/deployed/1"] == [1.0, 1.0, 1.0, 0.0]
    assert health.experts["1"]["gate"][:3] == pytest.approx([0.25] * 3) and math.isnan(
        health.experts["1"]["gate"][3]
    )


def test_the_rule_of_inference_is_held_against_the_training_decision() -> None:
    (exact,) = run_on_ranks(health_of, 1, [EACH_ITS_OWN])
    for figure in ("accuracy", "precision", "recall"):
        assert of_first_layer(exact, f"predictor_{figure}") == 1
    assert of_first_layer(exact, "deployed_capacity") == 1
    assert of_tenths(exact, "calibration") == {0: 0.0, 9: 1.0}


def of_a_share(context: ParallelContext) -> Health:
    return health_of(context, [EACH_ITS_OWN], taught_T=torch.tensor([1, 6]))


def test_the_predictor_is_judged_on_the_tokens_that_it_was_asked_of() -> None:
    (health,) = run_on_ranks(of_a_share, 1)
    assert health.figures["moe/deployed/1"] == [0.0, 2.0, 2.0, 0.0]
    assert of_first_layer(health, "predictor_accuracy") == 1


def far_too_sure(context: ParallelContext) -> Health:
    return health_of(context, [EACH_ITS_OWN], prediction=20.0)


def test_a_predictor_that_says_yes_to_all_is_right_about_those_taken_alone() -> None:
    (health,) = run_on_ranks(far_too_sure, 1)
    assert of_first_layer(health, "predictor_accuracy") == 0.25
    assert of_first_layer(health, "predictor_precision") == 0.25
    assert of_first_layer(health, "predictor_recall") == 1
    assert of_first_layer(health, "deployed_capacity") == 4
    assert of_tenths(health, "calibration") == {9: 0.25}
    assert of_tenths(health, "deployed_by_time") == {0: 4.0, 9: 4.0}


def far_too_shy(context: ParallelContext) -> Health:
    return health_of(context, [EACH_ITS_OWN], prediction=-20.0)


def test_a_predictor_that_says_no_to_all_is_right_about_most_and_finds_none() -> None:
    (health,) = run_on_ranks(far_too_shy, 1)
    assert of_first_layer(health, "predictor_accuracy") == 0.75
    assert of_first_layer(health, "predictor_precision") == 1
    assert of_first_layer(health, "predictor_recall") == 0


def test_capacity_goes_by_time_and_by_whether_there_is_a_condition() -> None:
    (health,) = run_on_ranks(health_of, 1, [[[0, 1]] * TOKENS + [[2]] * TOKENS])
    assert of_tenths(health, "deployed_by_time") == {0: 2.0, 9: 1.0}
    assert health.figures["moe/health/deployed_conditional"] == 2
    assert health.figures["moe/health/deployed_unconditional"] == 1
    assert of_tenths(health, "capacity_by_time") == {0: 2.0, 9: 1.0}
    assert health.figures["moe/health/capacity_conditional"] == 2
    assert health.figures["moe/health/capacity_unconditional"] == 1


def test_two_ranks_are_one() -> None:
    found = run_on_ranks(health_of, 2, [EACH_ITS_OWN, ALL_THE_SAME])
    assert found[0] == found[1] or repr(found[0]) == repr(found[1])
    # Of 16 tokens expert 0 takes 4, of which 2 are the others' too.
    assert of_first_layer(found[0], "overlap") == pytest.approx(0.5)
    assert of_first_layer(found[0], "uncovered") == pytest.approx(6 / 16)


def test_experts_are_kept_in_a_file_of_their_own(tmp_path: Path) -> None:
    write_experts(
        tmp_path / "experts.json", 7, {"1": {"together": [0.123456789], "gate": [math.pi, math.nan]}}
    )
    found = json.loads((tmp_path / "experts.json").read_text())
    assert found == {"step": 7, "blocks": {"1": {"together": [0.12346], "gate": [3.14159, None]}}}


def test_a_dense_model_has_no_health() -> None:
    context = join_ranks(1)
    assert ExpertHealth([], context.device).take(context.dp_group) is None


def of_random_decisions(context: ParallelContext, gate: str) -> tuple[Health, dict[str, list[list[float]]]]:
    """Of decisions, scores, thresholds and router weights that no two experts share, 24 tokens of a rank."""
    settings = [f"moe.gate={gate}", "moe.num_experts=4"]
    (layer,) = tiny_pipeline(tiny_config(settings), context.megatron_groups).denoiser.moe_layers()
    generator = torch.Generator().manual_seed(context.rank)
    share_E = torch.tensor([0.2, 0.3, 0.5, 0.9]) * (1 + context.rank) / 2
    mask_SE = torch.rand(24, EXPERTS, generator=generator) < share_E
    scores_SE = torch.rand(24, EXPERTS, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 9.0])
    prediction_SE = 4 * torch.randn(24, EXPERTS, generator=generator)
    threshold_E = torch.tensor([0.2, 0.4, 0.6, 0.95])
    weight_ED = torch.randn(layer.router.weight.shape, generator=torch.Generator().manual_seed(9))
    layer.router.predictor.expert_threshold_E.copy_(threshold_E)
    layer.router.predictor.threshold_steps.fill_(10**6)
    layer.router.weight.data.copy_(weight_ED)
    health = ExpertHealth([layer], context.device)
    health.add(
        [routing(mask_SE, scores_SE, prediction_SE, None)], torch.tensor([0, 9]), torch.zeros(2).bool()
    )
    found = health.take(context.dp_group)
    assert found is not None
    over_SE = prediction_SE.sigmoid() > threshold_E
    made = {"mask": mask_SE, "scores": scores_SE, "over": over_SE, "weight": weight_ED}
    return found, {name: tensor.tolist() for name, tensor in made.items()}


@pytest.mark.parametrize("gate", ["identity", "sigmoid"])
def test_figures_are_those_of_a_plain_loop_over_the_tokens_of_two_ranks(gate: str) -> None:
    answers = run_on_ranks(of_random_decisions, 2, gate)
    health = answers[0][0]
    mask_SE, scores_SE, over_SE = (
        torch.tensor([row for _, of in answers for row in of[name]]) for name in ("mask", "scores", "over")
    )
    figure = lambda name: of_first_layer(health, name)  # noqa: E731
    load = [int(mask_SE[:, expert].sum()) for expert in range(EXPERTS)]
    shares = [count / sum(load) for count in load]
    entropy = -sum(share * math.log(share) for share in shares)
    assert figure("entropy") == pytest.approx(entropy / math.log(EXPERTS), rel=1e-5)
    assert figure("effective_experts") == pytest.approx(math.exp(entropy), rel=1e-5)
    counts = [int(row.sum()) for row in mask_SE]
    assert figure("uncovered") == pytest.approx(counts.count(0) / len(counts))
    assert figure("experts_a_token_max") == max(counts)
    pairs = [(one, other) for one in range(EXPERTS) for other in range(EXPERTS) if one != other]
    together = {pair: sum(bool(row[pair[0]] and row[pair[1]]) for row in mask_SE) for pair in pairs}
    overlap = [together[one, other] / load[one] for one, other in pairs]
    assert figure("overlap") == pytest.approx(sum(overlap) / len(overlap), rel=1e-5)
    weight_ED = torch.tensor(answers[0][1]["weight"])
    cosines = [
        float(torch.cosine_similarity(weight_ED[one], weight_ED[other], dim=0)) for one, other in pairs
    ]
    assert figure("similarity") == pytest.approx(max(cosines), rel=1e-5)
    norms = [float(row.norm()) for row in weight_ED]
    assert figure("router_norm_ratio") == pytest.approx(max(norms) / min(norms), rel=1e-5)
    rows = [row.softmax(0) if gate == "identity" else row / row.sum() for row in scores_SE]
    soft = [float(share) for share in torch.stack(rows).mean(dim=0)]
    expected = math.exp(-sum(share * math.log(share) for share in soft))
    assert figure("effective_experts_soft") == pytest.approx(expected, rel=1e-4)
    both = int((over_SE & mask_SE).sum())
    assert figure("predictor_accuracy") == pytest.approx(float((over_SE == mask_SE).float().mean()))
    assert figure("predictor_precision") == pytest.approx(both / int(over_SE.sum()), rel=1e-5)
    assert figure("predictor_recall") == pytest.approx(both / int(mask_SE.sum()), rel=1e-5)
    assert figure("deployed_capacity") == pytest.approx(int(over_SE.sum()) / len(over_SE), rel=1e-5)


def test_experts_of_a_last_step_that_cannot_be_written_end_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "experts.json").mkdir()
    write_experts(tmp_path / "experts.json", 7, {})
    assert "experts.json cannot be written (" in caplog.text and "training goes on" in caplog.text
