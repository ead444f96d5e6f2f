"""How the experts do: statistics of training decisions, and of what the rule of inference would decide.

Letters beside the package's: L MoE layers, T tenths of the time axis.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.files import replace_file
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Routing
from diffmoe_scale.telemetry.meter import Means, Meter
from diffmoe_scale.telemetry.metrics import MetricValue
from diffmoe_scale.train.loss import NUM_TIME_BINS

logger = logging.getLogger(__name__)

PROBABILITY_BINS = 10
COUNTED = 8
"""Tokens with so many experts or more are counted together."""


@dataclass(frozen=True)
class Health:
    """`figures` for the line of a log step: `moe/deployed/BLOCK` is each expert's load by the rule of
    inference; `moe/health/...` hold a value for each MoE layer, but for those of calibration and of capacity
    by time and condition, which are means over layers. `experts` by block: `together`, the share of tokens
    that two experts both take ([E, E], flat), and `gate`, the mean weight of an expert's output."""

    figures: dict[str, MetricValue]
    experts: dict[str, dict[str, list[float]]]


class ExpertHealth:
    """Means over the observed micro-batches of all ranks, from one `take` to the next."""

    def __init__(self, layers: Sequence[MoELayer], device: torch.device) -> None:
        self._layers = layers
        self._meter = Meter(device)

    @torch.no_grad()
    def add(self, routings: Sequence[Routing], time_bin_B: Tensor, dropped_B: Tensor) -> None:
        """Decisions of a micro-batch that was observed (`Selection.is_observed`). `time_bin_B` are the
        samples' tenths of the time axis, `dropped_B` tells which have no condition. Does not wait for the
        device."""
        tenths_BT = torch.nn.functional.one_hot(time_bin_B, NUM_TIME_BINS).float()
        halves_B2 = torch.stack([~dropped_B, dropped_B], dim=1).to(tenths_BT)
        kinds_BK = torch.cat([tenths_BT, halves_B2], dim=1)
        for layer, routing in zip(self._layers, routings, strict=True):
            name = str(layer.layer_index)
            taken_SE = routing.mask_SE.float()
            self._add_decisions(name, taken_SE, routing.gate_SE.detach().float())
            self._add_capacity(f"{name}/capacity_by_kind", taken_SE, kinds_BK)
            if routing.scores_SE is not None:
                self._add_scores(
                    name, routing.scores_SE.float(), is_logit=layer.router.moe.gate == "identity"
                )
            if routing.prediction_TE is not None:
                probability_TE = routing.prediction_TE.sigmoid()
                over_TE = (probability_TE > layer.router.predictor.threshold()).float()
                taught_TE = taken_SE if routing.taught_T is None else taken_SE[routing.taught_T]
                self._add_prediction(name, probability_TE, over_TE, taught_TE)
                if routing.taught_T is None:
                    self._add_capacity(f"{name}/deployed_by_kind", over_TE, kinds_BK)

    def _add_capacity(self, name: str, taken_SE: Tensor, kinds_BK: Tensor) -> None:
        """Experts that a token gets, mean over the samples of each kind."""
        weight_K = kinds_BK.sum(dim=0)
        capacity_B = taken_SE.sum(dim=1).unflatten(0, (len(kinds_BK), -1)).mean(dim=1)
        self._meter.add(name, kinds_BK.T @ capacity_B / weight_K.clamp(min=1), weight_K)

    def _add_decisions(self, name: str, taken_SE: Tensor, gate_SE: Tensor) -> None:
        num_tokens = len(taken_SE)
        count_S = taken_SE.sum(dim=1).long().clamp(max=COUNTED)
        by_count = torch.nn.functional.one_hot(count_S, COUNTED + 1).float().mean(dim=0)
        self._meter.add(f"{name}/by_count", by_count)
        self._meter.add(f"{name}/together", (taken_SE.T @ taken_SE) / num_tokens)
        taken_E = taken_SE.sum(dim=0)
        self._meter.add(f"{name}/gate", gate_SE.sum(dim=0) / taken_E.clamp(min=1), taken_E)

    def _add_scores(self, name: str, scores_SE: Tensor, *, is_logit: bool) -> None:
        share_SE = scores_SE.softmax(dim=1) if is_logit else scores_SE / scores_SE.sum(dim=1, keepdim=True)
        self._meter.add(f"{name}/share", share_SE.mean(dim=0))

    def _add_prediction(self, name: str, probability_SE: Tensor, over_SE: Tensor, taken_SE: Tensor) -> None:
        """`over_SE` is what the rule of inference takes, `taken_SE` what training took."""
        both, over, taken = ((over_SE * taken_SE).sum(), over_SE.sum(), taken_SE.sum())
        self._meter.add(f"{name}/precision", both / over.clamp(min=1), over)
        self._meter.add(f"{name}/recall", both / taken.clamp(min=1), taken)
        self._meter.add(f"{name}/deployed", over_SE.mean(dim=0) * over_SE.shape[1])
        self._meter.add(f"{name}/agreement", (over_SE == taken_SE).float().mean())
        bins_SE = (probability_SE * PROBABILITY_BINS).long().clamp(max=PROBABILITY_BINS - 1)
        zeros = probability_SE.new_zeros(PROBABILITY_BINS)
        count = zeros.index_add(0, bins_SE.flatten(), torch.ones_like(probability_SE).flatten())
        total = zeros.index_add(0, bins_SE.flatten(), taken_SE.flatten())
        self._meter.add(f"{name}/calibration", total / count.clamp(min=1), count)

    def take(self, group: dist.ProcessGroup) -> Health | None:
        """What was observed since the last call; None if nothing was, or if the model is
        dense. Collective over `group`."""
        means = self._meter.means(group)
        names = [str(layer.layer_index) for layer in self._layers]
        if not names or not all(f"{name}/gate" in means.vectors for name in names):
            return None
        figures: dict[str, MetricValue] = {}
        for layer, name in zip(self._layers, names, strict=True):
            for figure, value in _layer_figures(layer, means, name).items():
                entry = figures.setdefault(f"moe/health/{figure}", [])
                assert isinstance(entry, list)
                entry.append(value)
            if f"{name}/deployed" in means.vectors:
                figures[f"moe/deployed/{name}"] = means.vectors[f"{name}/deployed"]
        experts = {
            name: {"together": means.vectors[f"{name}/together"], "gate": means.vectors[f"{name}/gate"]}
            for name in names
        }
        return Health(figures | _overall_figures(means, names), experts)


def _layer_figures(layer: MoELayer, means: Means, name: str) -> dict[str, float]:
    """What is said of one layer."""
    together_EE = _square(means.vectors[f"{name}/together"])
    load_E = together_EE.diagonal() * len(together_EE)
    pairs = _overlap(together_EE)
    by_count = means.vectors[f"{name}/by_count"]
    weight_ED = layer.router.weight.detach().float()
    unit_ED = torch.nn.functional.normalize(weight_ED, dim=1)
    cosine_EE = unit_ED @ unit_ED.T
    norm_E = weight_ED.norm(dim=1)
    entropy = _entropy(load_E)
    figures = {
        "entropy": entropy / math.log(max(2, len(load_E))),
        "effective_experts": math.exp(entropy),
        "uncovered": by_count[0],
        "experts_a_token_max": float(max(n for n, share in enumerate(by_count) if share > 0)),
        "overlap": float(pairs.mean()) if pairs.numel() else 0.0,
        "similarity": float(cosine_EE.fill_diagonal_(-1).max()) if len(cosine_EE) > 1 else 0.0,
        "router_norm_ratio": float(norm_E.max() / norm_E.min().clamp(min=1e-12)),
    }
    if f"{name}/share" in means.vectors:
        share_E = torch.tensor(means.vectors[f"{name}/share"])
        figures["effective_experts_soft"] = math.exp(_entropy(share_E))
    if f"{name}/deployed" in means.vectors:
        deployed_E = means.vectors[f"{name}/deployed"]
        figures["deployed_capacity"] = sum(deployed_E) / len(deployed_E)
        figures["predictor_accuracy"] = means.scalars[f"{name}/agreement"]
        # Without a decision of its kind there is none that is wrong.
        figures["predictor_precision"] = means.scalars.get(f"{name}/precision", 1.0)
        figures["predictor_recall"] = means.scalars.get(f"{name}/recall", 1.0)
    return figures


def _overall_figures(means: Means, names: list[str]) -> dict[str, MetricValue]:
    """Means over layers, without those of which there was no sample."""
    figures: dict[str, float] = {}
    for rule in ("capacity", "deployed"):
        if not all(f"{name}/{rule}_by_kind" in means.vectors for name in names):
            continue
        kinds_LK = torch.tensor([means.vectors[f"{name}/{rule}_by_kind"] for name in names])
        *by_time, conditional, unconditional = kinds_LK.mean(dim=0).tolist()
        figures |= {f"{rule}_by_time/{tenth}": value for tenth, value in enumerate(by_time)}
        figures |= {f"{rule}_conditional": conditional, f"{rule}_unconditional": unconditional}
    if all(f"{name}/calibration" in means.vectors for name in names):
        taken = torch.tensor([means.vectors[f"{name}/calibration"] for name in names])
        calibration = enumerate(taken.nanmean(dim=0).tolist())
        figures |= {f"calibration/{tenth}": value for tenth, value in calibration}
    return {f"moe/health/{name}": value for name, value in figures.items() if not math.isnan(value)}


def _square(flat: list[float]) -> Tensor:
    size = math.isqrt(len(flat))
    return torch.tensor(flat).view(size, size)


def _overlap(together_EE: Tensor) -> Tensor:
    """Of each ordered pair of experts, the share of the first one's tokens that the second takes too."""
    taken_E = together_EE.diagonal()
    shares_EE = together_EE / taken_E.clamp(min=1e-12)[:, None]
    return shares_EE[~torch.eye(len(together_EE), dtype=torch.bool)]


def _entropy(load: Tensor) -> float:
    """Of shares, in nats: ln E where all are equal."""
    share = (load / load.sum().clamp(min=1e-12)).clamp(min=1e-12)
    return float(-(share * share.log()).sum())


def write_experts(path: Path, step: int, experts: Mapping[str, Mapping[str, list[float]]]) -> None:
    """RUN/experts.json: `Health.experts` of the last log step. A failing write (a full disk) ends nothing."""
    rounded = {
        block: {
            kind: [None if math.isnan(value) else round(value, 5) for value in values]
            for kind, values in figures.items()
        }
        for block, figures in experts.items()
    }
    try:
        replace_file(path, json.dumps({"step": step, "blocks": rounded}).encode())
    except OSError as error:
        logger.warning("%s cannot be written (%s); training goes on", path, error)
