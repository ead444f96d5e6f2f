import pytest

from tools import bench_settings

KINDS = ["--contender", "adamw", "--contender", "muon", "optimizer.kind=muon"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--contender is 'missing'; expected two or more names"),
        (["--contender", "a", "--contender", "a", "model.precision=bf16"], "--contender is 'a a'"),
        ([*KINDS, "--rounds", "0"], "--rounds is 0"),
        ([*KINDS, "model.widht=3"], "model.widht"),
    ],
)
def test_what_cannot_be_compared_is_named(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_settings.main(words) == 2
    assert named in capsys.readouterr().err
