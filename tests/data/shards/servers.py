"""A server of shards that can break off or stall, and readers of what it serves."""

import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any  # settings of any type

from diffmoe_scale.config.data import BucketConfig, DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.data.shards.remote import RemoteShards
from tests.data.samples import read_batches

COUNTS = [5, 2, 7, 3, 4, 6]


class Server(ThreadingHTTPServer):
    """Serves a folder. Of all connections every `dropped_every`-th is cut in the middle of the answer, or
    `stalled_every`-th hangs."""

    dropped_every = stalled_every = 0
    requests: Counter[str]

    def __init__(self, folder: Path) -> None:
        self.requests, self.released, self.counting = Counter(), threading.Event(), threading.Lock()
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        with self.server.counting:
            self.server.requests[self.path] += 1
            number = self.server.requests.total()
        if self.server.dropped_every and number % self.server.dropped_every == 0:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        elif self.server.stalled_every and number % self.server.stalled_every == 0:
            self.server.released.wait(30)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def make_remote(folder: Path, **settings: Any) -> RemoteShards:
    return RemoteShards(
        folder / "cache", **({"limit_bytes": 1 << 30, "attempts": 4, "stall_timeout_s": 20.0} | settings)
    )


def make_reader(folder: Path, pattern: str, buckets: BucketConfig | None = None, **settings: Any) -> Reader:
    options: dict[str, Any] = {
        "cache_folder": str(folder / "cache"),
        "shuffle_block": 2,
        "stall_timeout_s": 20.0,
    } | settings
    return build_reader(
        DataConfig(**options), [pattern], model=ModelConfig(image_size=4), seed=3, buckets=buckets
    )


def read_keys(reader: Reader, *, start_sample: int = 0, number: int = sum(COUNTS) // 3) -> list[str]:
    batches = read_batches(reader, start_sample=start_sample, global_batch=3, micro_batch=3)
    return [
        key
        for batch in islice(batches, number)
        for key, weight in zip(batch.keys, batch.weight_B, strict=True)
        if weight == 1
    ]


def cached_copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/*/copy/*"))
