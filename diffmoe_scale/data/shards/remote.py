"""Shards that are no local files: whole copies in a bounded folder, streamed by webdataset's URL handlers.

Samples are read by offset, and the handlers (curl, gsutil, `pipe:` commands) only stream. So a shard is
copied whole when its first sample is asked for and read like any local file from then on: order and resume
know nothing of it. Range requests would save the folder, but a shuffled run wants every sample of the shards
that it has begun, so the bytes are the same and the requests thousands of times more; and they exist for http
alone.
"""

import contextlib
import fcntl
import logging
import os
import random
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from webdataset.gopen import Pipe

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
EXIT_WAIT_S = 60.0
# A shard that failed costs its other samples no attempts of their own for this long.
GIVEN_UP_S = 300.0
CURL_NOT_FOUND = 22
COPY = "copy"


def is_url(name: str) -> bool:
    return re.match(r"(pipe|[a-z][a-z0-9]+):", name) is not None


class RemoteShards:
    """Local copies of URLs, fetched when needed; the ones unused for longest leave when `limit_bytes` are
    exceeded.

    All processes of a machine share the folder: a lock for each shard lets one fetch and the others wait. A
    process that has a removed copy open reads on.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, attempts: int, stall_timeout_s: float) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.attempts = attempts
        self.stall_timeout_s = stall_timeout_s
        self.urls: dict[Path, str] = {}
        self.retried: list[str] = []
        """What was tried again since somebody last emptied this list."""
        self._given_up: dict[Path, tuple[float, str]] = {}

    def add(self, url: str) -> Path:
        """Where the copy of a URL has its place; nothing is fetched."""
        if url.startswith("pipe:"):
            found = re.findall(r"[^\s/'\"=]+\.tar\b", url)
            name = found[-1] if found else "pipe.tar"
        else:
            name = Path(urlsplit(url).path).name or "shard.tar"
        path = self.folder_of(url) / COPY / name
        self.urls[path] = url
        return path

    def folder_of(self, url: str) -> Path:
        """The folder of all that is kept of a URL."""
        return self.folder / blake2b(url.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()

    def beside(self, path: Path, name: str) -> str:
        """URL of the file `name` in the folder of a shard's URL; "" for a command, which names none."""
        url = self.urls[path]
        if url.startswith("pipe:"):
            return ""
        parts = urlsplit(url)
        return parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}").geturl()

    def open(self, path: Path, *, size: int | None) -> int:
        """A descriptor of a copy of `size` bytes (None: not known yet), fetched if it is not there.

        Raises: OSError when every attempt failed, or one did in the last minutes.
        """
        with self._locked(path):
            descriptor = self._open_copy(path, size)
            if descriptor is None:
                self._fetch_once(path, size)
                descriptor = self._open_copy(path, size)
                assert descriptor is not None, path
                self._remove_oldest(path)
            return descriptor

    def fetch_file(self, url: str, place: Path, *, otherwise: str) -> bool:
        """Bring a file beside shards to `place`; whether there was one. The log says what happens
        `otherwise`."""
        # Twice and not `attempts` times: its absence is usual, and only curl can tell it from a failure.
        try:
            with self._locked(place):
                self._fetch(url, place, size=None, attempts=2)
        except OSError as error:
            logger.info("%s; %s", error, otherwise)
            return False
        return True

    def _open_copy(self, path: Path, size: int | None) -> int | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        status = os.fstat(descriptor)
        if size is not None and status.st_size != size:
            os.close(descriptor)
            return None
        # By hand: most file systems are mounted so that reading does not move the time of access.
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        return descriptor

    def _fetch_once(self, path: Path, size: int | None) -> None:
        until, reason = self._given_up.get(path, (0.0, ""))
        if time.monotonic() < until:
            raise OSError(f"given up for {GIVEN_UP_S:.0f} s: {reason}")
        try:
            self._fetch(self.urls[path], path, size=size, attempts=self.attempts)
        except OSError as error:
            self._given_up[path] = (time.monotonic() + GIVEN_UP_S, str(error))
            raise

    def _fetch(self, url: str, place: Path, *, size: int | None, attempts: int) -> None:
        """Raises: FileNotFoundError at once when a server says that there is no such file; OSError after the
        last attempt."""
        # One name, so that what a killed process left is written over. The caller holds the lock.
        temporary = self._folder_of_copy(place) / "unfinished"
        for attempt in range(attempts):
            try:
                return copy_url(
                    url, place, temporary=temporary, size=size, stall_timeout_s=self.stall_timeout_s
                )
            except FileNotFoundError:
                raise
            except OSError as error:
                if attempt == attempts - 1:
                    raise
                pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.SystemRandom().uniform(
                    0.5, 1
                )
                self.retried.append(f"{error}; attempt {attempt + 2} of {attempts} after {pause_s:.1f} s")
                # At once as well: a start may wait here for long. Reading processes do not show it.
                logger.info("%s", self.retried[-1])
                time.sleep(pause_s)

    def _remove_oldest(self, kept: Path) -> None:
        """Remove copies, the one opened least recently first, down to the limit; never `kept`."""
        copies = []
        for path in self.folder.glob(f"*/{COPY}/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                copies.append((status.st_atime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in copies) - self.limit_bytes
        for _, size, path in sorted(copies):
            if excess <= 0:
                return
            if path != kept:
                path.unlink(missing_ok=True)
                excess -= size

    def _folder_of_copy(self, place: Path) -> Path:
        return self.folder / place.relative_to(self.folder).parts[0]

    @contextlib.contextmanager
    def _locked(self, place: Path) -> Iterator[None]:
        """While no other process writes in the folder of a file."""
        place.parent.mkdir(parents=True, exist_ok=True)
        with (self._folder_of_copy(place) / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def copy_url(url: str, place: Path, *, temporary: Path, size: int | None, stall_timeout_s: float) -> None:
    """Stream a URL into a file that appears complete or not at all; `temporary` is on the same file system.

    Raises: FileNotFoundError if a server says so; TimeoutError if no byte came for `stall_timeout_s`; OSError
    if the handler failed, or the file is not `size` bytes long.
    """
    # Imported here: it loads torch, and patterns are checked without.
    from webdataset.gopen import Pipe, gopen

    stream = gopen(_handled(url), "rb")
    assert isinstance(stream, Pipe), url
    try:
        with temporary.open("wb") as file:
            _copy(stream, file.write, url=url, stall_timeout_s=stall_timeout_s)
            length = file.tell()
        status = stream.proc.wait(EXIT_WAIT_S)
        if status == CURL_NOT_FOUND and not url.startswith("pipe:"):
            raise FileNotFoundError(f"the server has no {url}, or does not give it (curl exit code {status})")
        if status != 0:
            raise OSError(f"{url}: the transfer broke off after {length} bytes (exit code {status})")
        if size is not None and length != size:
            raise OSError(f"{url}: {length} bytes came; its index says {size}")
        os.replace(temporary, place)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(
            f"{url}: the command did not end {EXIT_WAIT_S:.0f} s after its last byte"
        ) from error
    finally:
        _end(stream)
        temporary.unlink(missing_ok=True)


def _handled(url: str) -> str:
    """The URL that webdataset's handlers are given: s3 has none, and a pipe must fail with its first command
    and die as a whole."""
    if url.startswith("s3:"):
        url = f"pipe:aws s3 cp --only-show-errors {shlex.quote(url)} -"
    if url.startswith("pipe:"):
        return f"pipe:exec setsid bash -o pipefail -c {shlex.quote(url.removeprefix('pipe:'))}"
    return url


def _copy(stream: "Pipe", write: Callable[[bytes], object], *, url: str, stall_timeout_s: float) -> None:
    descriptor = stream.stream.fileno()
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    while True:
        if not waiting.poll(1000 * stall_timeout_s):
            raise TimeoutError(f"{url}: no byte came for {stall_timeout_s:g} s (data.stall_timeout_s)")
        chunk = os.read(descriptor, CHUNK)
        if not chunk:
            return
        write(chunk)


def _end(stream: "Pipe") -> None:
    """Close, and kill what still runs: a stalled command would wait for ever."""
    if stream.proc.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            # Of a pipe, `setsid` made it the leader of its own group.
            leads = os.getpgid(stream.proc.pid) == stream.proc.pid
            (os.killpg if leads else os.kill)(stream.proc.pid, signal.SIGKILL)
        stream.proc.wait()
    stream.stream.close()
