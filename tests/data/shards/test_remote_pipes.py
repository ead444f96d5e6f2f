import os
import threading
from pathlib import Path

import pytest

from diffmoe_scale.data.shards import remote as remote_module
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.patterns import expand_patterns
from tests.data.samples import all_keys, write_shards
from tests.data.shards.servers import COUNTS, make_reader, make_remote, read_keys


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    write_shards(tmp_path, COUNTS)
    reader = make_reader(tmp_path, f"pipe:cat {tmp_path}/shard-{{000..005}}.tar | cat")
    assert set(read_keys(reader)) == all_keys(COUNTS)


def test_a_pipe_whose_first_command_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "FIRST_PAUSE_S", 0.01)
    remote = make_remote(tmp_path, attempts=2)
    with pytest.raises(OSError, match=r"pipe:\(echo -n abc.* broke off after 3 bytes \(exit code 7\)"):
        ShardCatalog(expand_patterns(["pipe:(echo -n abc; exit 7) | cat"], remote), remote=remote)
    assert len(remote.retried) == 1 and list(tmp_path.rglob("unfinished")) == []


def test_a_stalled_pipe_is_killed_with_its_children(tmp_path: Path) -> None:
    remote = make_remote(tmp_path, attempts=1, stall_timeout_s=0.5)
    with pytest.raises(TimeoutError, match=r"no byte came for 0\.5 s"):
        ShardCatalog(
            expand_patterns([f"pipe:(echo $BASHPID > {tmp_path}/pid; exec sleep 60) | cat"], remote),
            remote=remote,
        )
    with pytest.raises(ProcessLookupError):
        wait_until_gone(int((tmp_path / "pid").read_text()))


def wait_until_gone(process: int) -> None:
    """Raises: ProcessLookupError as soon as the process is gone."""
    for _ in range(100):
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        if state == "Z":
            raise ProcessLookupError(process)
        threading.Event().wait(0.1)


def test_s3_goes_through_the_command_of_its_vendor() -> None:
    assert remote_module._handled("s3://bucket/a b.tar") == (
        "pipe:exec setsid bash -o pipefail -c 'aws s3 cp --only-show-errors "
        """'"'"'s3://bucket/a b.tar'"'"' -'"""
    )
