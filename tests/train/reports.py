"""Reporters fed with made-up steps."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any  # lines of JSON

import torch

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.data.reading.batch import Failure
from diffmoe_scale.moe.routing import Routing, load_metrics
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.engine import StepResult
from diffmoe_scale.train.guard import Verdict
from diffmoe_scale.train.loss import StepLoss
from diffmoe_scale.train.reporter import Reporter
from tests.train.runs import tiny_batch, tiny_config, tiny_pipeline

SETTINGS = ["run.steps=5", "run.micro_batch=2", "telemetry.log_every=2", "telemetry.tensorboard=false"]
TOKENS, EXPERTS = 8, 4


def step_loss(value: float, decile: int) -> StepLoss:
    """Every token goes to expert 0; both samples have their times in one tenth."""
    mask_SE = torch.zeros(TOKENS, EXPERTS, dtype=torch.bool)
    mask_SE[:, 0] = True
    parts = {
        "loss/diffusion": torch.tensor(value),
        "time_bin_sum": torch.zeros(10),
        "time_bin_count": torch.zeros(10),
    }
    parts["time_bin_sum"][decile], parts["time_bin_count"][decile] = 2 * value, 2
    return StepLoss(
        total=torch.tensor(value),
        parts=parts,
        routings=[Routing(mask_SE, mask_SE.float(), metrics=load_metrics(mask_SE))],
    )


def report(
    context: ParallelContext,
    folder: Path,
    start_step: int = 0,
    last_step: int = 5,
    line: str = "{}",
    settings: Sequence[str] = (),
) -> str:
    """Steps of two micro-batches a rank. Losses are 1 and 2 on rank 0, 3 and 4 on rank 1; rank 1 gets one
    broken sample a step; step 2 is skipped. The answer is the reporter's state as JSON, as is `line`."""
    config = tiny_config([*SETTINGS, *settings])
    layers = tiny_pipeline(config, context.megatron_groups).denoiser.moe_layers()
    batch = tiny_batch(0, 2, config=config)
    with Reporter(
        config,
        context,
        RunDirectory(folder),
        moe_layers=layers,
        start_step=start_step,
        line=json.loads(line),
    ) as reporter:
        for step in range(start_step + 1, last_step + 1):
            reporter.begin_step(step)
            for chunk in (0, 1):
                is_broken = context.rank == 1 and chunk == 1
                broken = replace(
                    batch,
                    weight_B=torch.tensor([1.0, 0.0]),
                    failures=[Failure("corrupt", "key", "reason")],
                    uncaptioned=["key"],
                )
                with reporter.phase("data"):
                    time.sleep(0.01 * (1 + context.rank))
                reporter.add_batch(broken if is_broken else batch)
                reporter.add_loss(batch, step_loss(1.0 + 2 * context.rank + chunk, decile=chunk))
            is_skipped = step == 2
            reporter.add_step(
                StepResult(
                    learning_rate=step * 1e-3,
                    gradient_norm=float("inf") if is_skipped else 10.0,
                    is_skipped=is_skipped,
                )
            )
            reporter.add_verdict(
                Verdict(is_finite=not is_skipped, z_score=None if step == 3 else step / 2, is_spike=step == 5)
            )
            if step == 3:
                reporter.add({"loss/validation": 0.5})
            reporter.end_step(step, 8 * step)
        return json.dumps(reporter.state(last_step))


def read_lines(folder: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines}
