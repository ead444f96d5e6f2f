"""Files that one process at a time holds. The kernel frees them when it ends, however it does; over NFS they
hold between machines, too."""

import fcntl
import logging
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)


def hold(path: Path, *, setting: str, work: str) -> IO[str] | None:
    """Hold `path`, whose folder `setting` names, for as long as the returned file is open. None where the
    file system knows no locks (a warning is logged).

    Raises: ValueError if another process `work`s there (it "trains"); OSError if it cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # "a": what a holder wrote must stay until the lock is ours.
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise ValueError(
            f"{setting} {path.parent} is in use: {holder} {work} there; "
            f"wait for its end, stop it, or choose another {setting}"
        ) from None
    except OSError as error:
        file.close()
        logger.warning("%s cannot be locked (%s): nothing keeps a second start out", path.parent, error)
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
    file.flush()
    return file


def is_held(path: Path) -> bool:
    """Whether a process holds it now."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
