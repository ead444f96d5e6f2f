"""Which steps were bad, what was in them, and when to go back to the last checkpoint."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # JSON trees and gathered Python objects

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.config.run import DefenceConfig
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.loss import NUM_TIME_BINS, StepLoss
from diffmoe_scale.train.loss_history import LossHistory
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

NAMED_SAMPLES = 5
REMEMBERED = 20
# A sample is named beside the worst one if its own loss is so near.
SUSPICIOUS_SHARE = 0.1
COUNTERS = ("nonfinite", "spikes", "rollbacks")


@dataclass(frozen=True)
class Verdict:
    """On one step, the same on all ranks. `z_score` is None where nothing was to be compared with."""

    is_finite: bool
    z_score: float | None
    is_spike: bool

    @property
    def is_bad(self) -> bool:
        return self.is_spike or not self.is_finite


class Guard:
    """Judges every step by sums over all ranks. Its state is a part of the checkpoint's manifest."""

    def __init__(self, config: DefenceConfig, context: ParallelContext) -> None:
        self.config, self.context = config, context
        self.bad_in_a_row = 0
        self.counts = dict.fromkeys(COUNTERS, 0)
        """Of the whole run, also of steps that were gone back on."""
        self.suspects: list[str] = []
        """Keys of samples that bad steps named last."""
        self._history = LossHistory(num_bins=NUM_TIME_BINS, window=config.window)
        self._seen: list[tuple[list[str], dict[str, Tensor]]] = []

    @property
    def must_roll_back(self) -> bool:
        return self.bad_in_a_row >= self.config.bad_steps

    def add(self, batch: Batch, loss: StepLoss) -> None:
        """One micro-batch of the step was computed. Does not wait for the device."""
        self._seen.append((batch.keys, loss.parts))

    def judge(self, step: int, *, is_skipped: bool) -> Verdict:
        """At the end of a step: was it bad? Collective over `dp_group`: one all-reduce."""
        totals = torch.stack(
            [torch.cat([parts["time_bin_sum"], parts["time_bin_count"]]) for _, parts in self._seen]
        ).sum(0)
        dist.all_reduce(totals, group=self.context.dp_group)
        numbers = totals.tolist()
        sums, counts = numbers[:NUM_TIME_BINS], numbers[NUM_TIME_BINS:]
        verdict = self._judge_loss(sums, counts, is_skipped=is_skipped)
        if verdict.is_bad:
            self._report(step, verdict)
        self.bad_in_a_row = self.bad_in_a_row + 1 if verdict.is_bad else 0
        self._seen = []
        return verdict

    def _judge_loss(self, sums: list[float], counts: list[float], *, is_skipped: bool) -> Verdict:
        has_finite_loss = all(map(math.isfinite, sums))
        if not has_finite_loss:
            return Verdict(is_finite=False, z_score=None, is_spike=False)
        value = self._history.value(sums, counts)
        z_score = self._history.z_score(value)
        is_spike = z_score is not None and 0 < self.config.spike_z_score < z_score
        self._history.add(value, sums, counts, is_usual=not is_spike and not is_skipped)
        return Verdict(is_finite=not is_skipped, z_score=z_score, is_spike=is_spike)

    def _report(self, step: int, verdict: Verdict) -> None:
        """Count and name what was bad. Collective over `control_group`."""
        found = self._suspicious_samples(verdict)
        self.suspects = [*dict.fromkeys([*self.suspects, *(key for key, _ in found[:NAMED_SAMPLES])])][
            -REMEMBERED:
        ]
        if verdict.is_finite:
            self.counts["spikes"] += 1
            named = ", ".join(f"{key} ({ratio:.3g} times the usual)" for key, ratio in found[:NAMED_SAMPLES])
            logger.warning(
                "step %d: the loss is %.1f robust standard deviations above those before; "
                "largest losses for their time: %s",
                step,
                verdict.z_score,
                named,
            )
        else:
            self.counts["nonfinite"] += 1
            more = f" and {len(found) - NAMED_SAMPLES} more" if len(found) > NAMED_SAMPLES else ""
            named = ", ".join(key for key, _ in found[:NAMED_SAMPLES]) + more
            logger.warning(
                "step %d is not finite; samples whose own loss is not: %s",
                step,
                named or "none, so the gradient overflowed or a router's loss did",
            )

    def _suspicious_samples(self, verdict: Verdict) -> list[tuple[str, float]]:
        """Keys and loss ratios on all ranks, worst first: those not finite, or those of the largest ratio."""
        mine = [
            (key, self._history.ratio(loss, time_bin) if math.isfinite(loss) else math.inf)
            for keys, parts in self._seen
            for key, loss, time_bin in zip(
                keys, parts["sample_loss_B"].tolist(), parts["time_bin_B"].tolist(), strict=True
            )
        ]
        mine = (
            sorted(mine, key=lambda pair: -pair[1])[:NAMED_SAMPLES]
            if verdict.is_finite
            else [pair for pair in mine if math.isinf(pair[1])]
        )
        everyone: list[Any] = [None] * self.context.world_size
        dist.all_gather_object(everyone, mine, group=self.context.control_group)
        # Once, though the ranks of a sequence group have the same samples.
        pairs = {pair for of_rank in everyone for pair in of_rank}
        found = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
        return [pair for pair in found if pair[1] >= SUSPICIOUS_SHARE * found[0][1]]

    def rolled_back(self, state: Mapping[str, Any]) -> None:
        """The run stands at a checkpoint with `state` again. What was counted stays counted."""
        if state:
            self._history.restore(state["history"])
        self.bad_in_a_row = 0
        self.counts["rollbacks"] += 1

    def state(self) -> dict[str, Any]:
        return {
            "history": self._history.state(),
            "bad_in_a_row": self.bad_in_a_row,
            "counts": self.counts.copy(),
            "suspects": self.suspects.copy(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()` of a checkpoint; {} of one that has none starts empty."""
        if state:
            self._history.restore(state["history"])
            self.bad_in_a_row, self.counts, self.suspects = (
                state["bad_in_a_row"],
                dict(state["counts"]),
                list(state["suspects"]),
            )

    def summary(self) -> str:
        """What happened in the whole run; "" if nothing did."""
        if not any(self.counts.values()):
            return ""
        return (
            f"not finite: {counted(self.counts['nonfinite'], 'step')}, with a loss spike: "
            f"{counted(self.counts['spikes'], 'step')}; {counted(self.counts['rollbacks'], 'rollback')}; "
            f"samples named last: {', '.join(self.suspects) or 'none'}"
        )
