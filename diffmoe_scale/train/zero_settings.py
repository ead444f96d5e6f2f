"""DeepSpeed's configuration of a run."""

from typing import Any  # a JSON tree

from diffmoe_scale.config.schema import Config
from diffmoe_scale.parallel.bucket import bucket_size
from diffmoe_scale.parallel.context import ParallelContext


def deepspeed_settings(
    config: Config, context: ParallelContext, *, accumulation: int, num_parameters: int
) -> dict[str, Any]:
    """It shards and steps; schedule, logging and checkpoints are ours."""
    bucket = bucket_size(num_parameters)
    settings: dict[str, Any] = {
        # DeepSpeed counts every rank's micro-batch, those of a sequence group several times.
        "train_batch_size": config.run.global_batch * context.sequence_parallel,
        "train_micro_batch_size_per_gpu": config.run.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
        # DeepSpeed's default is the weights' format.
        "communication_data_type": config.parallel.gradient_format,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": context.device.type == "cuda",
            "reduce_scatter": True,
            # DeepSpeed allocates the reduce bucket whole, 5e8 elements by default: no more than the model
            # needs.
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            # Parameters keep their order, which checkpoints rely on.
            "round_robin_gradients": False,
        },
    }
    if config.parallel.offload_optimizer:
        settings["zero_optimization"]["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": context.device.type == "cuda",
        }
        # torch's fused AdamW instead of DeepSpeed's, which is compiled for minutes at its first use.
        settings["zero_force_ds_cpu_optimizer"] = False
    if config.model.precision == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        # Sums over many micro-batches would lose small gradients in bf16.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
