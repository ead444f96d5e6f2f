"""A config whose batch and layout some number of GPUs can run, and what was changed for it."""

import math
from dataclasses import replace

from diffmoe_scale.config.schema import Config
from diffmoe_scale.plan.search import divisors


def fit_to_ranks(config: Config, ranks: int) -> tuple[Config, list[str]]:
    """The config with the nearest batch, expert parallelism and micro-batch that `ranks` GPUs can share
    evenly: a larger batch, and not more of the others. A sentence for each that was changed."""
    run, parallel, changes = config.run, config.parallel, []
    batch = -(-run.global_batch // ranks) * ranks
    if batch != run.global_batch:
        changes.append(
            f"run.global_batch {run.global_batch} does not split over {ranks} GPUs: planned with {batch}"
        )
    fitting = math.gcd(config.moe.num_experts or 1, ranks)
    expert_parallel = divisors(fitting, parallel.expert_parallel)[-1]
    if expert_parallel != parallel.expert_parallel:
        changes.append(
            f"parallel.expert_parallel {parallel.expert_parallel} does not divide {ranks} GPUs: planned with "
            f"{expert_parallel}"
        )
    micro_batch = divisors(batch // ranks, run.micro_batch)[-1]
    if micro_batch != run.micro_batch:
        changes.append(
            f"run.micro_batch {run.micro_batch} does not divide a GPU's share of the batch, "
            f"{batch // ranks}: planned with {micro_batch}"
        )
    fitted = replace(
        config,
        run=replace(run, global_batch=batch, micro_batch=micro_batch),
        parallel=replace(parallel, expert_parallel=expert_parallel),
    )
    return fitted, changes
