from dataclasses import replace

import pytest
import torch

from diffmoe_scale.plan.flops import count_flops
from diffmoe_scale.telemetry.hardware import gpu_of_user
from diffmoe_scale.train.speed import Speed
from tests.train.runs import tiny_batch, tiny_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_operations_a_second_are_those_of_the_pictures() -> None:
    config = tiny_config([])
    speed = Speed(config, CPU)
    flops = count_flops(config, num_samples=config.run.global_batch).model
    # 16 pixels, in patches of 2 or 4.
    tokens = (16 // config.model.patch_size) ** 2
    assert speed.metrics(10.0, ranks=2) == {
        "throughput/tflops": pytest.approx(5 * flops / 1e12),
        "throughput/tokens_per_s": 10 * tokens,
    }


@pytest.mark.parametrize(("precision", "number_format"), [("bf16", "bf16"), ("fp32", "fp32")])
def test_mfu_is_over_what_the_gpu_can_do_in_the_models_format(
    precision: str, number_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    config = tiny_config([f"model.precision={precision}"])
    speed = Speed(config, CUDA)
    peak = gpu_of_user("h100").flops[number_format]  # type: ignore[index]  # one of its keys
    assert speed.metrics(20.0, ranks=2)["throughput/mfu"] == pytest.approx(10 * speed.flops / peak)


def test_an_unknown_gpu_has_no_mfu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla K80")
    with caplog.at_level("INFO"):
        assert "throughput/mfu" not in Speed(tiny_config([]), CUDA).metrics(1.0, ranks=1)
    assert "throughput/mfu is left out: what Tesla K80 can do at most is not known" in caplog.text


def test_pictures_of_other_sizes_count_by_their_tokens() -> None:
    config = tiny_config([])
    speed = Speed(config, CPU)
    batch = tiny_batch(0, 2, config=config)
    assert speed.squares(batch) == 2
    half = replace(batch, pixels_BHWC=torch.zeros(2, 8, 16, 3, dtype=torch.uint8))
    assert speed.squares(half) == 1
    latents = replace(batch, pixels_BHWC=None, latents_BCHW=torch.zeros(2, 3, 16, 8))
    assert speed.squares(latents) == 1
