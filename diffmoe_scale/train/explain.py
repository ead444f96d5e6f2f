"""Why a rank stopped, and its exit code."""

import logging
import socket

from diffmoe_scale.cli.command import FAILED, WRONG_USE
from diffmoe_scale.config.check import RunError
from diffmoe_scale.train.stop import Stopped

logger = logging.getLogger(__name__)

HOW_TO_CONTINUE = "the same command continues from the newest complete checkpoint"


def explain(error: BaseException, *, rank: int) -> int:
    """Log why this rank stopped, and where. The exit code."""
    from diffmoe_scale.parallel.context import is_peer_failure
    from diffmoe_scale.parallel.peers import name_lost_ranks

    # The log names the rank of every line but the main one's.
    place = f"{'on' if rank else 'rank 0 on'} {socket.gethostname()}"
    if isinstance(error, Stopped):
        logger.warning("stopped (%s): %s; %s", place, error, HOW_TO_CONTINUE)
        return error.exit_code
    if isinstance(error, ValueError):
        logger.error("stopped (%s): %s", place, error)
        return WRONG_USE
    if isinstance(error, Exception) and is_peer_failure(error):
        cause = "another rank died or hung; look for the first error in the ranks' output"
        logger.error("stopped (%s): %s; %s (what this rank saw: %s)", place, cause, HOW_TO_CONTINUE, error)
        # After that line: the launcher may end this process at any moment.
        if lost := name_lost_ranks():
            logger.error("lost: %s; where the others waited stands in RUN/stacks, if they did", lost)
    elif isinstance(error, (RunError, OSError)):
        logger.error("stopped (%s): %s; without the cause, %s", place, error, HOW_TO_CONTINUE)
    else:
        logger.error(
            "stopped (%s): %s: %s; without the cause, %s",
            place,
            type(error).__name__,
            error,
            HOW_TO_CONTINUE,
            exc_info=error,
        )
    return FAILED
