"""A server of shards on this machine."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffmoe_scale.data.shards import remote as remote_module
from tests.data.samples import write_shards
from tests.data.shards.servers import COUNTS, Server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote_module, "FIRST_PAUSE_S", 0.01)
    (tmp_path / "served").mkdir()
    write_shards(tmp_path / "served", COUNTS)
    with Server(tmp_path / "served") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()
