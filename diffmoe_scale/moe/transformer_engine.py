"""Transformer Engine: expert GEMMs in bf16 or FP8 on NVIDIA GPUs."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

FP8_ROWS = 16


def load_transformer_engine() -> ModuleType:
    """`transformer_engine.pytorch`. Raises ValueError, with what to do, where it cannot work."""
    try:
        # After torch, which loads the libraries that it links against.
        import transformer_engine.pytorch as te
    except (ImportError, OSError) as error:
        raise ValueError(
            f"moe.backend is 'transformer_engine' but the package cannot be imported ({error}); "
            "run `pip install --no-build-isolation 'transformer_engine[pytorch]'`, "
            "or set moe.backend to 'grouped'"
        ) from error
    if not torch.cuda.is_available():
        raise ValueError(
            "moe.backend is 'transformer_engine' but there is no CUDA device; set moe.backend to 'grouped'"
        )
    return te


def precision_context(precision: str) -> Callable[[], AbstractContextManager[object]]:
    """A maker of the context in which expert GEMMs run with `moe.precision`. Raises ValueError where the GPU
    cannot."""
    te = load_transformer_engine()
    if precision == "model":
        return nullcontext
    is_supported, reason = (
        te.is_fp8_block_scaling_available if precision == "fp8_block" else te.is_fp8_available
    )(return_reason=True)
    if not is_supported:
        raise ValueError(
            f"moe.precision is {precision!r} but this GPU cannot do it ({reason}); "
            "set moe.precision to 'model'"
        )
    from transformer_engine.common import recipe

    match precision:
        case "fp8_delayed":
            # Every rank scales its own experts: their largest values need no collective.
            chosen = recipe.DelayedScaling(reduce_amax=False)
        case "fp8_current":
            chosen = recipe.Float8CurrentScaling()
        case _:
            chosen = recipe.Float8BlockScaling()
    return partial(te.autocast, enabled=True, recipe=chosen)


class TransformerEngineLinear(nn.Module):
    """te.GroupedLinear behind the contract of grouped_linear.LoopLinear."""

    def __init__(
        self,
        num_gemms: int,
        input_size: int,
        output_size: int,
        *,
        config: TransformerConfig,
        bias: bool,
        **_: object,
    ) -> None:
        super().__init__()
        if input_size % FP8_ROWS or output_size % FP8_ROWS:
            raise ValueError(
                f"an expert linear is {input_size} to {output_size} wide; "
                f"moe.backend 'transformer_engine' needs multiples of {FP8_ROWS}"
            )
        te = load_transformer_engine()
        self.num_gemms, self.output_size = num_gemms, output_size
        self.grouped = te.GroupedLinear(
            num_gemms, input_size, output_size, bias=bias, params_dtype=config.params_dtype, device="cuda"
        )
        self.pad, self.unpad = te.Fp8Padding(num_gemms, FP8_ROWS), te.Fp8Unpadding(num_gemms, FP8_ROWS)
        self.has_bias = bias

    def expert_tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights [O, I] and biases [O] (an empty list without biases) by local expert."""
        indices = range(self.num_gemms)
        biases = [self.grouped.get_parameter(f"bias{i}") for i in indices] if self.has_bias else []
        return [self.grouped.get_parameter(f"weight{i}") for i in indices], biases

    def forward(self, x_RI: Tensor, rows_per_expert: list[int]) -> tuple[Tensor, None]:
        """y_RO of rows sorted by expert. Rows are padded with zeros before each linear, not once before both:
        what a bias makes of a padded row would count in the FP8 scale of the second."""
        if x_RI.shape[0] == 0:
            # TransformerEngine#3019: it can crash without rows. Every parameter still gets its (zero)
            # gradient.
            return x_RI.new_empty(0, self.output_size) + 0 * sum(
                parameter.sum() for parameter in self.parameters()
            ), None
        # is_first_microbatch stays None: weights are quantized anew in each forward, so none is ever stale.
        if all(rows % FP8_ROWS == 0 for rows in rows_per_expert):
            return self.grouped(x_RI, rows_per_expert), None
        padded_RI, padded_rows = self.pad(x_RI, rows_per_expert)
        return self.unpad(self.grouped(padded_RI, padded_rows), rows_per_expert), None
