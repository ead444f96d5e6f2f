"""`python -m diffmoe_scale.pretrain --config FILE [key.sub=value ...]`: train a model, or continue a run that
stopped."""

import argparse
import contextlib
import logging
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import IO, Any, NoReturn  # Any: what multiprocessing keeps to itself

from diffmoe_scale.cli.command import TRY_AGAIN, WRONG_USE, command_parser, run_command, user_path
from diffmoe_scale.config.help import describe_config
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.run_directory import RunDirectory, hold_lock, run_of_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.files import replace_file
from diffmoe_scale.telemetry.log import setup_logging, silence_packages
from diffmoe_scale.train.explain import explain
from diffmoe_scale.train.places import check_places
from diffmoe_scale.train.stop import Stopped, end_on_signals
from diffmoe_scale.train.temporary import own_temporary_folder
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

WORKER_END_S = 5
"""For a killed process to be gone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 trained to the end, 1 a failure while running, 2 a wrong setting, 75 a signal asked for a
    checkpoint and the end (sysexits.h's EX_TEMPFAIL: start again later), 130 the same by SIGINT."""
    return run_command(build_parser(), work, arguments)


def work(parsed: argparse.Namespace) -> int:
    config = read_config(parsed.config, parsed.settings)
    if parsed.check:
        check_places(config)
        print(config.run.directory)
        return 0
    if parsed.dry_run:
        dry_run(config)
        return 0
    with own_temporary_folder():
        return run(config, start_id=parsed.start_id)


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "pretrain",
        "Train a DiffMoE diffusion transformer. "
        "A run that stopped continues from its newest complete checkpoint.",
        describe_settings=describe_config,
    )
    parser.add_argument(
        "--config",
        type=user_path,
        required=True,
        help="YAML file of settings; every file in configs/ is an example",
    )
    # deepspeed's launcher appends this to the arguments of each rank it starts; the rank is read from
    # LOCAL_RANK.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--check",
        action="store_true",
        help="check the settings, and that shards and run directory can be used; print the run directory",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="read the data, print the size of the network, the data and the memory, and train nothing",
    )
    # Of launch/pretrain_t2i.sh: the main rank writes it into RUN/ended after training to the end.
    parser.add_argument("--start-id", default="", help=argparse.SUPPRESS)
    parser.add_argument(
        "settings", nargs="*", metavar="key.sub=value", help="settings that override the file's"
    )
    return parser


def read_config(file: Path, settings: Sequence[str]) -> Config:
    """The config of a run starts that run again, wherever it was moved to and from whatever folder. Raises:
    ValueError."""
    config = load_config(file, settings)
    directory = run_of_config(file)
    if directory is None or any(word.startswith("run.directory=") for word in settings):
        return config
    if directory.path.resolve() == Path(config.run.directory).resolve():
        return config
    return replace(config, run=replace(config.run, directory=str(directory.path)))


def run(config: Config, *, start_id: str = "") -> int:
    """Train as one rank of the job that the launcher's environment describes. The exit code.

    Raises: ValueError if there are no shards or no place for the run; then nothing was begun.
    """
    silence_packages()
    # Imported here: `--help` and wrong settings answer at once.
    from diffmoe_scale.parallel.launcher import adopt_launcher_variables
    from diffmoe_scale.train.start import missing_folders, remove_start

    directory = RunDirectory(Path(config.run.directory))
    rank = adopt_launcher_variables()
    if rank == 0:
        check_places(config)
    made = missing_folders(directory.path) if rank == 0 else []
    try:
        lock = enter(directory, rank=rank)
    except OSError as error:
        raise ValueError(
            f"run.directory is {config.run.directory!r}, which cannot be written to ({error}); choose another"
        ) from error
    try:
        train_to_end(config, directory)
        if rank == 0:
            if start_id:
                replace_file(directory.ended, start_id.encode())
            report_end(config, directory)
    except (Exception, Stopped) as error:  # the others learn of it only when this process ends
        code = explain(error, rank=rank)
        if code == TRY_AGAIN and rank == 0 and start_id:
            # torchrun answers 1 to whatever ended its processes.
            replace_file(directory.ended, f"{start_id} stopped".encode())
        if code == WRONG_USE:
            remove_start(directory, made)
        return code
    finally:
        if lock is not None:
            lock.close()
    return 0


def enter(directory: RunDirectory, *, rank: int) -> IO[str] | None:
    """Begin to log; on the main rank, lock the directory and check what it holds. The lock.

    Raises: ValueError if it is in use or its checkpoints are gone; OSError if it cannot be written to.
    """
    if rank != 0:
        setup_logging(directory.path, rank=rank)
        return None
    from diffmoe_scale.train.start import check_start

    lock = hold_lock(directory)
    try:
        setup_logging(directory.path, rank=rank)
        check_start(directory)
    except (ValueError, OSError):
        if lock is not None:
            lock.close()
        raise
    return lock


def train_to_end(config: Config, directory: RunDirectory) -> None:
    """Collective over the job. Raises: Stopped when a signal asked for the end; whatever failed."""
    from diffmoe_scale.parallel.context import finalize, initialize
    from diffmoe_scale.train.overview import check_ranks, describe_network
    from diffmoe_scale.train.run import train

    end_on_signals()
    ranks = int(os.environ["WORLD_SIZE"])
    check_ranks(config, ranks=ranks)
    if os.environ["RANK"] == "0":
        for line in describe_network(config, ranks=ranks):
            logger.info("%s", line)
    parallel = config.parallel
    context = initialize(
        expert_parallel=parallel.expert_parallel,
        sequence_parallel=parallel.sequence_parallel,
        timeout_s=parallel.timeout_s,
    )
    train(config, context, directory)
    finalize()


def report_end(config: Config, directory: RunDirectory) -> None:
    """Write RUN/report.html, and say where the run lies and what comes next. For the main rank."""
    from diffmoe_scale.report.report import write_report

    try:
        report = f"its report is {write_report(directory.path)}"
    except (OSError, ValueError) as error:
        logger.warning("the report was not written: %s", error)
        report = "it has no new report"
    path = shlex.quote(str(directory.path))
    wanted = '--prompt "..."' if config.model.conditioning == "text" else "--label 0"
    logger.info("%s has its %s; %s", directory.path, counted(config.run.steps, "step"), report)
    logger.info("next: python -m diffmoe_scale.sample --checkpoint %s %s", path, wanted)


def dry_run(config: Config) -> None:
    """Print what a run would say at its start; by the main rank. Raises: as `describe_planned_run`."""
    silence_packages()
    from diffmoe_scale.parallel.launcher import adopt_launcher_variables
    from diffmoe_scale.train.overview import describe_planned_run

    if adopt_launcher_variables() == 0:
        check_places(config)
        ranks = max(int(os.environ["WORLD_SIZE"]), config.parallel.expert_parallel)
        for line in describe_planned_run(config, RunDirectory(Path(config.run.directory)), ranks=ranks):
            print(line)


def end_workers() -> None:
    """Data workers and the server that starts them: they would notice the end of this process seconds later,
    and workers do not heed the interpreter's request to end."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(WORKER_END_S)
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]  # of Python 3.11 to 3.14
    if server._forkserver_pid is not None:
        with contextlib.suppress(OSError):  # its socket lay in a temporary folder that is gone
            os.kill(server._forkserver_pid, signal.SIGKILL)
            server._stop()


def leave(code: int) -> NoReturn:
    """End this process with `code`.

    After a failure the interpreter's shutdown is left out: it joins threads and frees process groups that may
    wait for a dead rank, for minutes or for good, while the other ranks wait for this one.
    """
    end_workers()
    if code == 0:
        sys.exit()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed terminal
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
