"""`python -m diffmoe_scale`: the list of commands; `python -m diffmoe_scale COMMAND ...` runs one."""

import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.cli.command import OK, WRONG_USE, command_parser, run_command

COMMANDS = {
    "pretrain": "train a model, or continue a run that stopped",
    "sample": "draw pictures for captions or labels",
    "evaluate": "score a trained model and write its report",
    "page": "open a page that draws from a trained model",
    "doctor": "compare the nodes of a cluster before a job finds out",
    "plan": "show what a model costs on GPUs, and the layouts that fit",
}
TOOLS = {
    "make_scenes": "write the embedded data set of coloured shapes",
    "prepare_shards": "write your pictures and captions as shards",
    "inspect_data": "show what shards hold, and what is broken",
    "cache_features": "encode pictures and captions of shards in advance",
    "convert_checkpoint": "convert weights: runs, safetensors files, DiT, SiT, DiffMoE",
    "upcycle_checkpoint": "make a mixture of experts of a dense model, and other shapes of models",
    "inspect_checkpoint": "show what a checkpoint is, and how two differ",
    "find_gamma": "find the threshold that gives a sampling cost",
    "compute_metrics": "score pictures on disk: FID and others",
    "sweep_capacity": "measure quality and time of pictures by capacity",
    "study": "train variants of a model from several seeds and compare them",
    "report": "write a run's report anew",
    "compare_runs": "show where the metrics of two runs differ",
    "gpu_report": "measure all that one GPU can",
    "gpu_smoke": "show whether a GPU and its packages work",
    "bench_layer": "time the MoE layer",
    "bench_step": "time a training step",
    "bench_settings": "time steps of a run under several settings",
    "bench_reference": "time layer and step against a checkout of the DiffMoE reference",
    "bench_micro_step": "time forward and backward of a config",
    "bench_sampling": "time whole pictures by capacity",
    "bench_data": "time the reading of data",
    "bench_checkpoint": "time checkpoints",
    "bench_metrics": "time FID and other metrics, and their memory",
    "bench_resume": "time the start deep in an epoch",
    "bench_conversion": "time the conversion of a large checkpoint, and its memory",
    "bench_telemetry": "time telemetry within the steps of a run",
}
FOLDER = Path(__file__).resolve().parents[1] / "tools"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list, or run the command that the first argument names, in this process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    match words:
        case [] | ["-h" | "--help" | "--version", *_]:
            parser = command_parser("diffmoe_scale", "Lists the commands, or runs one.")
            is_version = words[:1] == ["--version"]
            return run_command(parser, lambda parsed: print(describe_commands()), words if is_version else [])
        case [name, *rest] if name in COMMANDS:
            sys.argv = [name, *rest]
            runpy.run_module(f"diffmoe_scale.{name}", run_name="__main__", alter_sys=True)
            return OK
        case [name, *rest] if name in TOOLS and (FOLDER / f"{name}.py").is_file():
            sys.argv = [name, *rest]
            runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
            return OK
    if words[0] in TOOLS:
        print(
            f"error: {words[0]!r} is tools/{words[0]}.py of the repository, which is not here; clone it, and "
            "install with pip install -e .",
            file=sys.stderr,
        )
        return WRONG_USE
    known = [*COMMANDS, *(TOOLS if FOLDER.is_dir() else [])]
    near = difflib.get_close_matches(words[0], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    print(f"error: {words[0]!r} is no command here; {hint}", file=sys.stderr)
    return WRONG_USE


def describe_commands() -> str:
    """A line for each command, tools included where the repository is there."""
    lines = ["usage: python -m diffmoe_scale COMMAND [arguments]; COMMAND --help tells more", ""]
    shown = COMMANDS | (TOOLS if FOLDER.is_dir() else {})
    return "\n".join(lines + [f"  {name:<20}{meaning}" for name, meaning in shown.items()])


if __name__ == "__main__":
    sys.exit(main())
