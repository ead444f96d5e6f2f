"""Time of a training step, from operations, bytes and stated rates. An estimate: nothing here was measured.

A product of `rows` x `inner` with `inner` x `outer` reaches PRODUCT_CEILING of the GPU's figure, times
rows / (rows + HALF_ROWS), times width / (width + HALF_WIDTH) for the narrower of inner and outer: few rows an
expert and narrow experts leave a GPU idle. Attention reaches ATTENTION_CEILING. Everything else moves bytes:
every tensor that an operation reads or writes, at MEMORY_EFFICIENCY of the bandwidth. A micro-batch takes at
least LAUNCH_S for each kernel. The all-to-all of experts and the gathering of weights wait for nothing and
hide behind nothing; the reduction of gradients hides behind half of the backward pass.
"""

from dataclasses import dataclass

from diffmoe_scale.config.schema import Config
from diffmoe_scale.plan.flops import Flops, Product, is_repeated
from diffmoe_scale.plan.network import Transfer
from diffmoe_scale.plan.trace import Trace
from diffmoe_scale.telemetry.hardware import Gpu, NumberFormat

PRODUCT_CEILING, ATTENTION_CEILING, MEMORY_EFFICIENCY = 0.75, 0.5, 0.8
HALF_ROWS, HALF_WIDTH = 256, 512
LAUNCH_S = 5e-6
OPTIMIZER_BYTES = 38
"""That the update moves for each weight of a rank's share: five fp32 numbers are read, four are written, and
the weight itself."""
HOST_RATE = 20e9
"""Bytes a second of the same update on the processor, for each GPU, with parallel.offload_optimizer."""
HIDDEN_SHARE = 0.5
FP8_COPIES = 4
"""Bytes that FP8 moves for each number it casts: bf16 read, and written in two layouts."""
FP8_KERNELS = 12
"""Casts of an expert layer, forward and backward."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step by what takes them; they add up."""

    products: float
    other_operations: float
    waiting_for_launches: float
    all_to_all: float
    gradients: float
    """Of their reduction, what does not hide behind the backward pass."""
    weights: float
    update: float

    @property
    def total(self) -> float:
        compute = self.products + self.other_operations + self.waiting_for_launches
        return compute + self.all_to_all + self.gradients + self.weights + self.update


def plan_time(
    config: Config, *, flops: Flops, trace: Trace, transfers: list[Transfer], share: int, gpu: Gpu, ranks: int
) -> StepTime:
    """`share`: weights whose optimizer state this rank keeps."""
    accumulation = config.run.global_batch // (config.run.micro_batch * ranks)
    expert_parallel, what = config.parallel.expert_parallel, config.model.activation_checkpointing
    forward = backward = repeated = 0.0
    for product, (ahead, back) in flops.products.items():
        seconds_each = _seconds(product, config, gpu, expert_parallel)
        forward += ahead * seconds_each
        backward += back * seconds_each
        repeated += ahead * seconds_each * is_repeated(product, what)
    products = forward + backward + repeated
    other = trace.traffic / (gpu.bandwidth * MEMORY_EFFICIENCY)
    micro_batch = max(products + other, trace.launches * LAUNCH_S)
    seconds = {transfer.what: transfer.seconds for transfer in transfers}
    reduction = sum(time for what, time in seconds.items() if what.startswith("all-reduce"))
    reductions = accumulation if config.parallel.zero_stage == 2 else 1
    hidden = HIDDEN_SHARE * (backward + repeated + other / 2) * reductions
    is_offloaded = config.parallel.offload_optimizer
    update_rate = HOST_RATE if is_offloaded else gpu.bandwidth * MEMORY_EFFICIENCY
    return StepTime(
        products=products * accumulation,
        other_operations=other * accumulation,
        waiting_for_launches=(micro_batch - products - other) * accumulation,
        all_to_all=seconds.get("all-to-all of tokens", 0.0),
        gradients=max(0.0, reduction - hidden),
        weights=sum(time for what, time in seconds.items() if what.startswith("all-gather")),
        update=OPTIMIZER_BYTES * share / update_rate,
    )


def efficiency(rows: int, inner: int, outer: int) -> float:
    """Share of the GPU's figure that a product reaches."""
    width = min(inner, outer)
    return PRODUCT_CEILING * rows / (rows + HALF_ROWS) * width / (width + HALF_WIDTH)


def _seconds(product: Product, config: Config, gpu: Gpu, expert_parallel: int) -> float:
    """Seconds of one operation of a product."""
    peak = gpu.flops[number_format(product.is_bf16, config)]
    if product.is_attention:
        return 1 / (peak * ATTENTION_CEILING)
    # An expert computes the rows of all ranks that share it.
    rows = product.rows * (expert_parallel if product.part == "experts" else 1)
    return 1 / (peak * efficiency(rows, product.inner, product.outer))


def number_format(is_bf16: bool, config: Config) -> NumberFormat:
    """Of products: fp32 ones go by run.matmul_precision."""
    if is_bf16:
        return "bf16"
    formats: dict[str, NumberFormat] = {"highest": "fp32", "high": "tf32", "medium": "bf16"}
    return formats[config.run.matmul_precision]


def fp8_pays_from(config: Config, gpu: Gpu) -> float | None:
    """Tokens of a rank above which expert products in FP8 are faster, casts counted; None: never."""
    moe, width = config.moe, config.model.width
    expert_width = round(moe.expert_width_ratio * width)
    if not moe.num_experts or not gpu.flops["fp8"]:
        return None
    matrices = 3 if moe.activation == "swiglu" else 2
    capacity = moe.experts_a_token
    reached = PRODUCT_CEILING * min(width, expert_width) / (min(width, expert_width) + HALF_WIDTH)
    flops = 6 * matrices * width * expert_width * capacity
    saved = flops / reached * (1 / gpu.flops["bf16"] - 1 / gpu.flops["fp8"])
    rate = gpu.bandwidth * MEMORY_EFFICIENCY
    casts = FP8_COPIES * 2 * (width + (matrices - 1) * expert_width) * capacity / rate
    local = moe.num_experts / config.parallel.expert_parallel
    fixed = FP8_COPIES * local * matrices * width * expert_width / rate + FP8_KERNELS * LAUNCH_S
    return fixed / (saved - casts) if saved > casts else None
