"""Reading processes live exactly as long as their rank."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver

# Those that ask a rank to end: launchers send them to all its children, and the rank still needs its data for
# the step that it is in.
IGNORED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


def start_worker_server() -> None:
    """Start the process that forks workers, which ignores IGNORED as they do. For the main thread."""
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in IGNORED}
    try:
        forkserver.ensure_running()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def follow_rank(worker: int) -> None:
    """For DataLoader's worker_init_fn: end when the rank does, also when it was killed.

    Without this a long read (a stalled transfer) would go on: torch looks for its parent's end, and that is
    the fork server, which waits for its workers.
    """
    # torch has set a handler of SIGTERM by now.
    for signum in IGNORED:
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    rank = multiprocessing.parent_process()
    assert rank is not None, "called in a worker"
    rank.join()
    os._exit(1)
