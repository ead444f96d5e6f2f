import pytest
from matplotlib.figure import Figure

from diffmoe_scale.report import capacity_plots, plots


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written meanwhile."""
    figures: list[Figure] = []

    def keep(figure: Figure) -> str:
        figures.append(figure)
        return ""

    for module in (plots, capacity_plots):
        monkeypatch.setattr(module, "svg_text", keep)
    return figures
