import math
from pathlib import Path

import pytest

from diffmoe_scale.prepare.options import ShardOptions


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("validation", 1.0, r"--validation is 1\.0; expected a share in \[0, 1\)"),
        ("validation", -0.1, "--validation"),
        ("validation", math.nan, "--validation is nan"),
        ("samples_per_shard", 0, "--samples-per-shard is 0; expected at least 1"),
        ("workers", 0, "--workers"),
        ("min_size", -1, "--min-size"),
        ("resize", -1, r"--resize is -1; expected 0 \(off\)"),
        ("max_aspect", 0.5, "--max-aspect"),
        ("max_aspect", math.nan, "--max-aspect"),
        ("max_aspect", math.inf, "--max-aspect"),
        ("duplicates", 17, "--duplicates"),
        ("output", Path(""), "--output"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, option: str, value: object, message: str) -> None:
    arguments: dict[str, object] = {"input": tmp_path / "in", "output": tmp_path / "out", option: value}
    with pytest.raises(ValueError, match=message):
        ShardOptions(**arguments)  # type: ignore[arg-type]  # of a test
