"""Settings of the whole test run."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist

from diffmoe_scale.telemetry.log import OWN_LOGGERS

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

MOST_WORKERS = 8
SLOW_FOLDERS = tuple(f"tests/{name}/" for name in ("cluster", "train", "launch", "parallel"))
# Tiny models: threads would only wait for each other, and for the ranks and programs that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell ignores SIGINT for what it starts in the background, nohup SIGHUP, and programs that the tests start
# would inherit that.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`; each takes more than a gigabyte."""
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "LoadScopeScheduling":
    from tests.workers import ByFile  # xdist is no need of a test on one process

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files start first, so that at the end no process waits for another's last one."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW_FOLDERS))


@pytest.fixture(scope="module", autouse=True)
def no_world_is_left_behind() -> Iterator[None]:
    """Tests that join a world in this process leave none to those of the next file."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    yield
    if dist.is_initialized():
        from megatron.core import parallel_state  # seconds, and needed by few

        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
        # Only what already asked for it: importing it takes seconds.
        if loading := sys.modules.get("diffmoe_scale.sampling.loading"):
            loading.join_ranks.cache_clear()
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """The process's logging and warnings are global; pytest's own handlers step aside."""
    names = (None, *OWN_LOGGERS, "DeepSpeed", "py.warnings")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    format_warning = warnings.formatwarning
    logging.getLogger().handlers = []
    logging.captureWarnings(False)
    yield
    logging.captureWarnings(False)
    warnings.formatwarning = format_warning
    for handler in logging.getLogger().handlers:
        handler.close()
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate
