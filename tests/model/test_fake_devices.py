"""The training pass on tensors that have a device and a shape, but no memory: what a GPU would refuse (a
tensor left on the CPU) or wait for (a number read from the device) fails here, where there is none.

Backward asks the driver for the GPU, so it is walked on fake tensors of the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.routers import RULES
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.moe.layer import single_rank_groups
from diffmoe_scale.moe.routing import RoutingContext, Rule, Selection
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.plan.build import build_denoiser
from diffmoe_scale.plan.trace import forget_positions

SAMPLES, SIZE = 4, 32
cuda_build = pytest.mark.skipif(
    torch.version.cuda is None, reason="torch built without CUDA ends the process at a CUDA tensor"
)
CASES: dict[str, list[str]] = {
    "pool of a rank": [],
    "pool of a sample": ["moe.pool=sample"],
    "share of the tokens": ["moe.predictor_tokens=0.25", "moe.predictor_width=0.25"],
    "swiglu and shared experts": ["moe.activation=swiglu", "moe.shared_experts=1"],
    "blocks computed twice": ["model.activation_checkpointing=blocks"],
    "experts computed twice": ["model.activation_checkpointing=experts"],
    "expert choice": ["moe.router=expert_choice", "sampling.selection=static"],
    "expert threshold, first steps": ["moe.router=expert_threshold", "moe.threshold_warmup_steps=9"],
    "decoupled router": ["moe.router_input=decoupled", "moe.gate=identity"],
    "rope, rms and shared modulation": [
        "model.positions=rope2d",
        "model.qk_norm=rms",
        "model.modulation=shared",
    ],
    "plain loop in fp32": ["moe.backend=loop", "model.precision=fp32"],
}


def make_config(*settings: str) -> Config:
    return load_config(
        None,
        [
            "model.conditioning=class",
            "model.num_classes=10",
            f"model.image_size={SIZE}",
            "model.patch_size=2",
            "model.width=128",
            "model.heads=2",
            "model.depth=2",
            "model.precision=bf16",
            "moe.num_experts=16",
            *settings,
        ],
    )


@contextmanager
def first_of(ranks: int, expert_parallel: int) -> Iterator[ProcessGroupCollection]:
    """The groups of the first of many ranks that do not exist: collectives answer at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        parallel_state.initialize_model_parallel(
            expert_model_parallel_size=expert_parallel, create_gloo_process_groups=False
        )
        yield ProcessGroupCollection.use_mpu_process_groups()
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def fake_denoiser(
    config: Config, groups: ProcessGroupCollection, mode: FakeTensorMode, device: str
) -> Denoiser:
    denoiser = build_denoiser(config, groups).to(NUMBER_FORMATS[config.model.precision])
    with mode:
        for module in denoiser.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(
                    module,
                    name,
                    nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device)),
                )
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
    return denoiser


def loss_of(denoiser: Denoiser, device: str, rule: Rule = "train") -> Tensor:
    x_BCHW = torch.randn(SAMPLES, 3, SIZE, SIZE, device=device)
    labels_B = torch.zeros(SAMPLES, dtype=torch.int64, device=device)
    prediction = denoiser(
        x_BCHW,
        torch.rand(SAMPLES, device=device),
        Condition(labels_B=labels_B),
        Selection(rule, step=1 if rule == "train" else None),
    )
    loss: Tensor = prediction.value_BCHW.float().square().mean()
    return loss + sum(sum(routing.aux_losses.values()) for routing in prediction.routings)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    forget_positions()
    yield FakeTensorMode(allow_non_fake_inputs=False)
    forget_positions()


@cuda_build
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks, expert_parallel", [(1, 1), (64, 8)])
def test_a_training_pass_on_a_gpu_waits_for_nothing_and_mixes_no_device(
    fake: FakeTensorMode, case: str, ranks: int, expert_parallel: int
) -> None:
    with first_of(ranks, expert_parallel) as groups:
        denoiser = fake_denoiser(make_config(*CASES[case]), groups, fake, "cuda")
        with fake:
            loss = loss_of(denoiser, "cuda")
    assert loss.device.type == "cuda" and loss.dtype == torch.float32


@cuda_build
def test_a_process_without_groups_can_train_on_a_gpu(fake: FakeTensorMode) -> None:
    denoiser = fake_denoiser(make_config(), single_rank_groups(), fake, "cuda")
    with fake:
        assert loss_of(denoiser, "cuda").device.type == "cuda"


@cuda_build
@pytest.mark.parametrize("case", ["pool of a rank", "pool of a sample", "expert choice"])
def test_sampling_with_a_fixed_number_of_rows_waits_for_nothing_either(
    fake: FakeTensorMode, case: str
) -> None:
    with first_of(1, 1) as groups:
        denoiser = fake_denoiser(make_config(*CASES[case]), groups, fake, "cuda")
        with fake, torch.no_grad():
            loss = loss_of(denoiser, "cuda", "static")
    assert loss.device.type == "cuda"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda_build)])
@pytest.mark.parametrize("rule", ["train", "static", "threshold", "interval"])
@pytest.mark.parametrize("router", RULES)
def test_no_router_reads_a_number_or_mixes_devices_to_decide(
    fake: FakeTensorMode, router: str, rule: Rule, device: str
) -> None:
    """How many rows each expert has is read by the dispatcher, where experts take as many as they do."""
    if rule not in ("train", *RULES[router]):
        pytest.skip(f"{router} has no {rule}")
    with first_of(8, 8) as groups:
        config = make_config(f"moe.router={router}", "moe.threshold_warmup_steps=0")
        denoiser = fake_denoiser(config, groups, fake, device)
        router_of_layer = denoiser.moe_layers()[0].router
        if device == "cpu":
            router_of_layer.refuse_nan = lambda *_: None  # type: ignore[method-assign]
        with fake:
            x_SD = torch.randn(SAMPLES * 256, 128, device=device)
            dropped_B = torch.ones(SAMPLES, dtype=torch.bool, device=device)
            context = RoutingContext(
                SAMPLES, x_SD, torch.randn(SAMPLES, 128, device=device), Selection(rule), dropped_B=dropped_B
            )
            routing = router_of_layer(x_SD, context)
    assert routing.gate_SE.device.type == device and routing.mask_SE.shape == (len(x_SD), 16)


@pytest.mark.parametrize("case", CASES)
def test_the_backward_pass_reads_no_number_and_gives_every_parameter_its_gradient(
    fake: FakeTensorMode, case: str
) -> None:
    with first_of(64, 8) as groups:
        denoiser = fake_denoiser(make_config(*CASES[case]), groups, fake, "cpu")
        # On CPU a NaN among the scores is looked for at once.
        for layer in denoiser.moe_layers():
            layer.router.refuse_nan = lambda *_: None  # type: ignore[method-assign]
        with fake:
            loss_of(denoiser, "cpu").backward()
    without = [name for name, parameter in denoiser.named_parameters() if parameter.grad is None]
    assert not without


def test_a_number_that_is_read_from_the_device_is_found(fake: FakeTensorMode) -> None:
    """Thresholds give experts as many tokens as they take: that must be read."""
    with first_of(1, 1) as groups:
        denoiser = fake_denoiser(make_config(), groups, fake, "cpu")
        for layer in denoiser.moe_layers():
            layer.router.refuse_nan = lambda *_: None  # type: ignore[method-assign]
        with fake, torch.no_grad(), pytest.raises(DataDependentOutputException):
            loss_of(denoiser, "cpu", "threshold")
