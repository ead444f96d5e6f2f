from pathlib import Path

import pytest

from tests.data.samples import write_shards
from tools import cache_features


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "autoencoder.kind is 'pixels'; expected 'diffusers': pixels need no cache"),
        (["--batch", "0"], "--batch is 0"),
        (["--budget", "much"], "--budget is 'much'; expected bytes, such as 500G"),
        (["autoencoder.kin=kl"], "autoencoder.kin"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write_shards(tmp_path, [1])
    (tmp_path / "c.yaml").touch()
    command = ["--config", f"{tmp_path}/c.yaml", "--input", f"{tmp_path}/*.tar", "--output"]
    assert cache_features.main([*command, str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line
