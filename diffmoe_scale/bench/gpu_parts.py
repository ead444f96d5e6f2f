"""The parts of the report on a GPU: what is measured, at which sizes, and how long it may take."""

import sys

from diffmoe_scale.bench.gpu_report import Part

PYTHON = sys.executable


def tool(name: str, *words: str) -> tuple[str, ...]:
    """The command of tools/NAME.py, whose result is {out}/PART.json by --output among the words."""
    return PYTHON, f"tools/{name}.py", *words


BATCH = ("run.micro_batch=32", "run.global_batch=32")
LARGE, TEXT = (
    ("--config", f"configs/{name}.yaml", "--device", "cuda") for name in ("imagenet256_l_e16", "t2i256_0.6b")
)


def gpu_parts() -> list[Part]:
    """For one Hopper GPU, 9 minutes in all: the paper's L, text to image, and many experts."""
    model = ("--dtype", "bf16", "--device", "cuda", "--width", "1024", "--depth", "8", "--batch", "64")
    pictures = ("--device", "cuda", "--width", "1024", "--depth", "12", "--batch", "32", "--rounds", "3")
    return [
        Part("smoke", 60, tool("gpu_smoke", "--device", "cuda", "--output", "{out}/smoke.json")),
        Part("tests", 80, (PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests")),
        layer_part("1024x16x16384"),
        layer_part("2048x16x16384"),
        layer_part("1024x64x8192x0.5"),
        step_part("step_large", 60, LARGE, "--variants", "eager", "graph"),
        step_part("step_large_compiled", 80, LARGE, "--variants", "eager", "compiled"),
        step_part("step_text", 50, TEXT),
        Part("model_step", 40, tool("bench_step", *model, "--output", "{out}/model_step.json")),
        Part("sampling", 40, tool("bench_sampling", *pictures, "--output", "{out}/sampling.json")),
        step_part("traced", 40, LARGE, "--rounds", "2", "--trace", "{out}/trace.json"),
    ]


def layer_part(shape: str) -> Part:
    """The layer in bf16 and, where there is Transformer Engine, FP8."""
    name = f"layer_{shape}"
    words = ("--dtype", "bf16", "--device", "cuda", "--shape", shape, "--output", f"{{out}}/{name}.json")
    return Part(name, 50, tool("bench_layer", *words))


def step_part(name: str, limit_s: float, config: tuple[str, ...], *words: str) -> Part:
    """Forward and backward of a config's micro-batch."""
    output = ("--output", f"{{out}}/{name}.json")
    return Part(name, limit_s, tool("bench_micro_step", *config, *words, *output, *BATCH))


def dry_parts() -> list[Part]:
    """The same commands on a CPU, at sizes that take seconds."""
    cpu = ("--device", "cpu", "--threads", "1", "--rounds", "1")
    settings = (
        *("model.conditioning=class", "model.num_classes=10", "model.image_size=32", "model.patch_size=4"),
        *("model.width=64", "model.heads=2", "model.depth=2", "moe.num_experts=4"),
        *("run.micro_batch=2", "run.global_batch=2"),
    )
    small = ("--width", "16", "--depth", "2", "--experts", "2", "--batch", "2", "--latent-size", "8")
    layer = tool("bench_layer", *cpu, "--shape", "16x4x64", "--dtype", "bf16")
    step = tool("bench_micro_step", *cpu)
    return [
        Part("smoke", 120, tool("gpu_smoke", "--device", "cpu", "--output", "{out}/smoke.json")),
        Part("tests", 120, (PYTHON, "-m", "pytest", "-q", "-m", "gpu", "tests/moe", "--collect-only")),
        Part("layer", 120, (*layer, "--output", "{out}/layer.json")),
        Part("step", 120, (*step, "--output", "{out}/step.json", "--trace", "{out}/trace.json", *settings)),
        Part("model_step", 120, tool("bench_step", *cpu, *small, "--output", "{out}/model_step.json")),
        Part("sampling", 120, tool("bench_sampling", *cpu, *small, "--output", "{out}/sampling.json")),
    ]
