from pathlib import Path

import pytest

from tests.prepare.folders import add_picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three captioned images."""
    folder = tmp_path / "images"
    for number, name in enumerate(("a.png", "deep/er/b.jpg", "deep/c.d.webp")):
        add_picture(folder, name, caption=f"caption {number}", color=(50 * number, 0, 0))
    return folder
