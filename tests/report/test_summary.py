from collections.abc import Sequence
from pathlib import Path

import pytest

from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.report.summary import settings_section, status_section


@pytest.mark.parametrize(
    ("words", "model", "experts"),
    [
        ([], "patch 4, text-conditional", "8 in every second block, router diffmoe"),
        (
            ["model.attention=joint", "model.positions=rope2d", "model.qk_norm=rms"],
            "patch 4, joint attention, 2-D RoPE, QK-norm, text-conditional",
            "8 in every second block, router",
        ),
        (
            ["model.modulation=shared", "moe.every=1", "moe.first_dense=2"],
            "patch 4, shared modulation, text-conditional",
            "8 in every block but the first 2, router",
        ),
    ],
    ids=["paper", "joint", "shared"],
)
def test_the_kinds_of_blocks_are_named(
    words: Sequence[str], model: str, experts: str, tmp_path: Path
) -> None:
    config, directory = load_config(None, words), RunDirectory(tmp_path)
    directory.config.write_text(dump_config(config), encoding="utf-8")
    page = str(settings_section(config, directory, "train"))
    assert model in page and experts in page


def test_a_line_without_its_time_has_no_date(tmp_path: Path) -> None:
    """Not that of 1970."""
    page = str(status_section([{"step": 3}], None, RunDirectory(tmp_path), "train"))
    assert "no date" in page and "newest checkpoint: none" in page and "1970" not in page
