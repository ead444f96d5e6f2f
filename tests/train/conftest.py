"""The settings of a whole run in a test's own folder."""

from pathlib import Path

import pytest

from tests.train.runs import text_settings
from tests.train.whole_runs import SETTINGS


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    return [*text_settings(tmp_path), *SETTINGS]
