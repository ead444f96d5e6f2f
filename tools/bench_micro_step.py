"""Forward and backward of one micro-batch of a config: time, MFU, memory beside the plan's.

    python tools/bench_micro_step.py --config configs/imagenet256_l_e16.yaml run.micro_batch=32 \\
        --variants eager compiled graph --output step.json

`graph` is a CUDA graph of the whole pass and needs a GPU, and `moe.pool` rank or sample.
"""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, output_file, run_command, user_path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("bench_micro_step", __doc__)
    add = parser.add_argument
    add("--config", type=user_path, help="YAML file of settings")
    add("--variants", nargs="+", choices=("eager", "compiled", "graph"), default=["eager"], help="(eager)")
    add("--rounds", type=int, default=8, help="counted rounds (8)")
    add("--threads", type=int, default=2, help="CPU threads (2)")
    add("--device", choices=("cpu", "cuda"), default="", help="(cuda if there is one)")
    add("--output", type=output_file, help="JSON file")
    add("--trace", type=output_file, help="also write a trace of one pass, by torch's profiler")
    add("settings", nargs="*", help="key.sub=value")
    return run_command(parser, measure, arguments)


def measure(parsed: argparse.Namespace) -> None:
    from diffmoe_scale.bench.contenders import set_up_device
    from diffmoe_scale.bench.micro_step import bench_micro_step, compare_memory, write_trace
    from diffmoe_scale.bench.timing import report
    from diffmoe_scale.config.load import dump_config, load_config

    if parsed.rounds < 1 or parsed.threads < 1:
        raise ValueError(f"--rounds is {parsed.rounds} and --threads {parsed.threads}; expected at least 1")
    config = load_config(parsed.config, parsed.settings)
    device = set_up_device(parsed.device, threads=parsed.threads)
    if "graph" in parsed.variants and device.type != "cuda":
        raise ValueError("--variants has graph, which needs a CUDA device; leave it out")
    table = bench_micro_step(config, device, rounds=parsed.rounds, variants=tuple(parsed.variants))
    memory = compare_memory(config, device)
    report(table, device, parsed.output, memory=memory, config=dump_config(config))
    print("  ".join(f"{name} {value:.3f}" for name, value in memory.items()))
    if parsed.trace is not None:
        write_trace(config, device, parsed.trace)


if __name__ == "__main__":
    sys.exit(main())
