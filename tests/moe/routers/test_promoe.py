"""Prototypes, and an expert for tokens without a caption."""

import math
from dataclasses import replace
from typing import Any  # settings of any type are passed on to MoEConfig

import pytest
import torch

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routers.promoe import contrastive_loss
from diffmoe_scale.moe.routing import RoutingContext, Rule
from tests.moe.layers import EXPERTS, SAMPLES, TOKENS, WIDTH, context, make_layer, tokens

DROPPED_B = torch.tensor([False, True, False])
LAST = EXPERTS - 1


def promoe(**settings: Any) -> MoELayer:
    return make_layer(**({"router": "promoe", "gate": "identity"} | settings))


def around(dropped_B: torch.Tensor = DROPPED_B, rule: Rule = "train") -> RoutingContext:
    return replace(context(rule, num_samples=len(dropped_B)), dropped_B=dropped_B)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("rule", ["train", "static"])
def test_tokens_take_the_nearest_prototypes_and_dropped_samples_the_last_expert(
    top_k: int, rule: Rule
) -> None:
    layer, x_SD = promoe(top_k=top_k), tokens()
    prototypes = layer.router.weight
    assert prototypes.shape == (LAST, WIDTH)
    _, routing = layer(x_SD, around(rule=rule))
    for s, x_D in enumerate(x_SD):
        if DROPPED_B[s // TOKENS]:
            expected = [0.0] * LAST + [1.0]
        else:
            cosine = [float(torch.dot(x_D, p) / (x_D.norm() * p.norm())) for p in prototypes]
            best = sorted(range(LAST), key=lambda c: -cosine[c])[:top_k]
            expected = [cosine[c] if c in best else 0.0 for c in range(LAST)] + [0.0]
        assert routing.gate_SE[s].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_batch_may_have_no_dropped_sample_or_only_such() -> None:
    layer, x_SD = promoe(), tokens().requires_grad_()
    for dropped_B in (torch.zeros(SAMPLES, dtype=torch.bool), torch.ones(SAMPLES, dtype=torch.bool)):
        y_SD, routing = layer(x_SD, around(dropped_B))
        assert bool(routing.mask_SE[:, LAST].all()) == bool(dropped_B.all())
        assert routing.mask_SE[:, LAST].any() == dropped_B.any()
        (y_SD.sum() + routing.aux_losses["contrastive"]).backward()
        assert x_SD.grad is not None and x_SD.grad.isfinite().all()
        assert layer.router.weight.grad is not None and layer.router.weight.grad.isfinite().all()
    assert float(routing.aux_losses["contrastive"]) == 0.0


def plain_loss(prototypes: torch.Tensor, x_SD: torch.Tensor, mask_SC: torch.Tensor) -> torch.Tensor:
    """Equation 6 by loops."""
    used = [c for c in range(len(prototypes)) if mask_SC[:, c].any()]
    if len(used) < 2:
        return torch.zeros(())
    means = [torch.stack([x_SD[s] for s in range(len(x_SD)) if mask_SC[s, c]]).mean(0) for c in used]
    losses = []
    for place, c in enumerate(used):
        p = prototypes[c]
        logits = torch.stack([torch.dot(p, m) / (p.norm() * m.norm()) / 0.07 for m in means])
        losses.append(logits.logsumexp(0) - logits[place])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_contrastive_loss_is_equation_6_and_reaches_tokens_and_prototypes(top_k: int) -> None:
    layer, x_SD = promoe(top_k=top_k, contrastive_weight=0.5, num_experts=9), tokens().requires_grad_()
    _, routing = layer(x_SD, around())
    mask_SC = routing.mask_SE[:, :-1]
    assert not mask_SC.any(dim=0).all() or top_k == 2  # some prototype has no token
    expected = 0.5 * plain_loss(layer.router.weight, x_SD, mask_SC)
    loss = routing.aux_losses["contrastive"]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for over in (x_SD, layer.router.weight):
        got, theirs = (torch.autograd.grad(v, over, retain_graph=True)[0] for v in (loss, expected))
        assert theirs.any()
        torch.testing.assert_close(got, theirs, rtol=1e-4, atol=1e-5)


def test_the_contrastive_loss_of_one_prototype_alone_is_0_with_finite_gradients() -> None:
    prototypes, x_SD = torch.randn(3, 4).requires_grad_(), torch.randn(5, 4).requires_grad_()
    for mask_SC in (torch.zeros(5, 3, dtype=torch.bool), torch.arange(3).expand(5, 3) == 1):
        loss = contrastive_loss(prototypes, x_SD, mask_SC)
        gradients = torch.autograd.grad(loss, [prototypes, x_SD])
        assert float(loss) == 0.0 and not any(gradient.any() for gradient in gradients)
    orthogonal = torch.eye(3)
    mask_SC = torch.eye(3, dtype=torch.bool)
    expected = -math.log(math.exp(1 / 0.07) / (math.exp(1 / 0.07) + 2))
    assert float(contrastive_loss(orthogonal, orthogonal, mask_SC)) == pytest.approx(expected, abs=1e-6)


def test_cosines_are_those_of_fp32_and_of_any_size_of_token() -> None:
    layer, x_SD = promoe(), tokens()
    gate_SE = layer(x_SD, around())[1].gate_SE
    torch.testing.assert_close(layer(100 * x_SD, around())[1].gate_SE, gate_SE)
    assert gate_SE.dtype == torch.float32


def test_a_sample_does_not_depend_on_its_batch() -> None:
    layer, x_SD = promoe(), tokens()
    y_SD, _ = layer(x_SD, around(rule="static"))
    parts = [
        layer(part, around(dropped_B, rule="static"))[0]
        for part, dropped_B in zip(x_SD.split(TOKENS), DROPPED_B.split(1), strict=True)
    ]
    torch.testing.assert_close(y_SD, torch.cat(parts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"top_k": EXPERTS},
            r"moe.top_k is 4; expected 1 to moe.num_experts - 1 \(3\)",
        ),
        ({"router_input": "decoupled"}, "expected 'modulated' for moe.router 'promoe'"),
        ({"pool": "sample"}, "expected 'rank' unless moe.router is one of"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(promoe().router.moe, **settings)
