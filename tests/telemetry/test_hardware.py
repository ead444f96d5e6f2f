import pytest

from diffmoe_scale.telemetry.hardware import GPUS, find_gpu, gpu_of_user


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H800", "h800"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_a_gpu_is_known_by_what_torch_calls_it(name: str, found: str | None) -> None:
    gpu = find_gpu(name)
    assert (None if gpu is None else gpu.name) == found


def test_every_name_of_a_user_finds_its_model() -> None:
    assert [gpu_of_user(gpu.name) for gpu in GPUS] == list(GPUS)
    with pytest.raises(ValueError, match=r"--gpu is 'v100'; expected one of h100-pcie, .* b200, a100"):
        gpu_of_user("v100")


def test_narrower_formats_are_faster() -> None:
    for gpu in GPUS:
        rates = [gpu.flops["fp32"], gpu.flops["tf32"], gpu.flops["bf16"]]
        assert rates == sorted(rates) and gpu.flops["fp8"] in (
            0,
            pytest.approx(2 * gpu.flops["bf16"], rel=0.02),
        )
