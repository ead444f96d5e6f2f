"""What GPUs can do at most, as their makers state it: for MFU, and for plans.

Dense products: the makers' figures "with sparsity" are halved. Sources: NVIDIA's data sheets of A100 (2021),
H100 (2023), H200 (2024), HGX B200 (2024), L40S (2023).
"""

from dataclasses import dataclass
from typing import Literal

NumberFormat = Literal["fp32", "tf32", "bf16", "fp8"]
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One model. Rates are per second."""

    name: str
    words: tuple[str, ...]
    """What torch's name of the device holds, in lower case; of several models the first counts."""
    memory: int
    """Bytes that a program can have."""
    bandwidth: float
    """Bytes of device memory."""
    flops: dict[NumberFormat, float]
    """Operations of matrix products, by number format; 0 where it has none."""
    link: float
    """Bytes that it sends to the other GPUs of its machine."""
    nic: float
    """Bytes that it sends to other machines: one network card a GPU, as in the usual machine of 8."""


def _flops(fp32: float, tf32: float, bf16: float, fp8: float) -> dict[NumberFormat, float]:
    """From units of 1e12 a second."""
    return {"fp32": fp32 * 1e12, "tf32": tf32 * 1e12, "bf16": bf16 * 1e12, "fp8": fp8 * 1e12}


HOPPER = _flops(67, 494.7, 989.4, 1978.9)
GPUS = (
    Gpu("h100-pcie", ("h100", "pcie"), 79 * GIB, 2.0e12, _flops(51, 378, 756, 1513), 300e9, 50e9),
    Gpu("h100-nvl", ("h100", "nvl"), 93 * GIB, 3.9e12, _flops(60, 417, 835, 1671), 300e9, 50e9),
    Gpu("h100", ("h100",), 79 * GIB, 3.35e12, HOPPER, 450e9, 50e9),
    Gpu("h800", ("h800",), 79 * GIB, 3.35e12, HOPPER, 200e9, 50e9),
    Gpu("h200", ("h200",), 140 * GIB, 4.8e12, HOPPER, 450e9, 50e9),
    Gpu("b200", ("b200",), 178 * GIB, 7.7e12, _flops(75, 1100, 2250, 4500), 900e9, 50e9),
    Gpu("a100", ("a100",), 79 * GIB, 2.04e12, _flops(19.5, 156, 312, 0), 300e9, 25e9),
    Gpu("a800", ("a800",), 79 * GIB, 2.04e12, _flops(19.5, 156, 312, 0), 200e9, 25e9),
    Gpu("l40s", ("l40s",), 44 * GIB, 0.864e12, _flops(91.6, 183, 362, 733), 32e9, 25e9),
)


def find_gpu(name: str) -> Gpu | None:
    """The model that torch (torch.cuda.get_device_name) or a user names; None for an unknown one.

    `NVIDIA H100 80GB HBM3` is `h100`, `NVIDIA A100-SXM4-40GB` is `a100`.
    """
    lower = name.lower()
    exact = next((gpu for gpu in GPUS if gpu.name == lower), None)
    return exact or next((gpu for gpu in GPUS if all(word in lower for word in gpu.words)), None)


def gpu_of_user(name: str) -> Gpu:
    """The model that a user names. Raises: ValueError with those that are known."""
    gpu = find_gpu(name)
    if gpu is None:
        known = ", ".join(gpu.name for gpu in GPUS)
        raise ValueError(f"--gpu is {name!r}; expected one of {known}")
    return gpu


def mfu(flops: float, seconds: float, *, gpu: Gpu, number_format: NumberFormat) -> float:
    """Model FLOPs utilization: operations of a GPU's share of the work over what it could do in that time."""
    return flops / seconds / gpu.flops[number_format]
