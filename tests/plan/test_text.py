import pytest

from diffmoe_scale.plan.text import gigabytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (81_540_000_000, "81.5 GB"),
        (100_000_000, "0.1 GB"),
        (99_000_000, "99.0 MB"),
        (1_234_567_000_000, "1,234.6 GB"),
        (4_096, "4.1 kB"),
        (3, "0.0 kB"),
    ],
)
def test_a_size_is_never_nothing_unless_it_is(count: int, text: str) -> None:
    assert gigabytes(count) == text
