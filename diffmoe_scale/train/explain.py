"""Why a rank stopped, and its exit code."""

import logging

from diffmoe_scale.cli.command import FAILED, WRONG_USE
from diffmoe_scale.config.check import RunError
from diffmoe_scale.train.stop import Stopped

logger = logging.getLogger(__name__)

HOW_TO_CONTINUE = "the same command continues from the newest complete checkpoint"


def explain(error: BaseException, *, rank: int) -> int:
    """Log why this rank stopped. The exit code."""
    from diffmoe_scale.parallel.context import is_peer_failure
    from diffmoe_scale.parallel.peers import name_lost_ranks

    if isinstance(error, Stopped):
        logger.warning("stopped (rank %d): %s; %s", rank, error, HOW_TO_CONTINUE)
        return error.exit_code
    if isinstance(error, ValueError):
        logger.error("stopped (rank %d): %s", rank, error)
        return WRONG_USE
    if isinstance(error, Exception) and is_peer_failure(error):
        cause = "another rank died or hung; look for the first error in the ranks' output"
        logger.error(
            "stopped (rank %d): %s; %s (what this rank saw: %s)", rank, cause, HOW_TO_CONTINUE, error
        )
        # After that line: the launcher may end this process at any moment.
        if lost := name_lost_ranks():
            logger.error("lost: %s; where the others waited stands in RUN/stacks, if they did", lost)
    elif isinstance(error, (RunError, OSError)):
        logger.error("stopped (rank %d): %s; without the cause, %s", rank, error, HOW_TO_CONTINUE)
    else:
        logger.error(
            "stopped (rank %d): %s: %s; without the cause, %s",
            rank,
            type(error).__name__,
            error,
            HOW_TO_CONTINUE,
            exc_info=error,
        )
    return FAILED
