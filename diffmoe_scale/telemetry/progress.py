"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINES_A_RUN = 200
LINE_INTERVAL_S = 60.0


class Progress:
    """Steps done, loss, images a second and time left. For the main rank only.

    Without a terminal, a log line takes the bar's place: after the first step, then at log steps, when 1/200
    of the run or a minute has passed since the last.
    """

    def __init__(self, *, total_steps: int, start_step: int) -> None:
        self._total_steps = total_steps
        self._start_step = start_step
        self._started = self._last_line = time.monotonic()
        self._last_line_step = start_step - total_steps  # the first log step gives a line
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, mininterval=0.5
            )

    def update(self, step: int, *, loss: float | None = None, images_per_s: float | None = None) -> None:
        """Step `step` is done; the figures are given at log steps."""
        figures = [f"loss {loss:.4f}"] if loss is not None else []
        figures += [f"{images_per_s:.1f} images/s"] if images_per_s is not None else []
        if self._bar is not None:
            if figures:
                self._bar.set_postfix_str(", ".join(figures), refresh=False)
            self._bar.update(step - self._bar.n)
        elif figures and self._is_line_due(step):
            logger.info(
                ", ".join(
                    [
                        f"step {step} of {self._total_steps}",
                        *figures,
                        f"{_duration(self._seconds_left(step))} left",
                    ]
                )
            )
            self._last_line, self._last_line_step = time.monotonic(), step
        elif not figures and step == self._start_step + 1:
            took_s = time.monotonic() - self._started
            logger.info("step %d of %d took %.1f s", step, self._total_steps, took_s)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _is_line_due(self, step: int) -> bool:
        has_advanced = (step - self._last_line_step) * LINES_A_RUN >= self._total_steps
        return (
            has_advanced or step == self._total_steps or time.monotonic() - self._last_line >= LINE_INTERVAL_S
        )

    def _seconds_left(self, step: int) -> float:
        return (
            (time.monotonic() - self._started) / max(1, step - self._start_step) * (self._total_steps - step)
        )


def _duration(seconds: float) -> str:
    """Such as 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
