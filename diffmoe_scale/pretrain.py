"""`python -m diffmoe_scale.pretrain --config FILE [key.sub=value ...]`: train a model, or continue a run that stopped."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.config.load import describe_config, load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 trained to the end, 1 a failure while running, 2 a wrong setting."""
    try:
        config = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run(config)


def parse_arguments(arguments: Sequence[str]) -> Config:
    parser = argparse.ArgumentParser(
        prog="pretrain_t2i",
        description="Train a DiffMoE diffusion transformer. A run that stopped continues from its newest complete checkpoint.",
        epilog="settings (section.key=default):" + describe_config(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings; every file in configs/ is an example")
    # deepspeed's launcher appends this to the arguments of each rank it starts; the rank is read from LOCAL_RANK.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="key.sub=value", help="settings that override the file's")
    parsed = parser.parse_intermixed_args(arguments)
    return load_config(parsed.config, parsed.settings)


def run(config: Config) -> int:
    """Train as one rank of the job that the launcher's environment describes."""
    # Imported here: `--help` and wrong settings answer at once.
    from diffmoe_scale.parallel.context import finalize, initialize
    from diffmoe_scale.telemetry.log import setup_logging
    from diffmoe_scale.train.trainer import train

    directory = RunDirectory(Path(config.run.directory))
    try:
        context = initialize(expert_parallel=config.parallel.expert_parallel, timeout_s=config.parallel.timeout_s)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    setup_logging(directory.path, rank=context.rank)
    try:
        train(config, context, directory)
    except ValueError as error:
        logger.error("rank %d: %s", context.rank, error)
        return 2
    except (RuntimeError, OSError) as error:
        logger.error("rank %d stopped: %s", context.rank, error, exc_info=True)
        return 1
    finalize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
