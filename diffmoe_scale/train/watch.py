"""What an operator asks of a run by a file, and what is kept of a run that hangs."""

from types import TracebackType
from typing import Self

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.telemetry import TelemetryConfig
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.telemetry.profiler import ProfileOnDemand
from diffmoe_scale.telemetry.stacks import StackDump
from diffmoe_scale.train.stop import StopSignals


class Watch:
    """Around the steps of a run, on every rank; the main rank looks for the files.

    RUN/stop is for where signals do not reach the processes, as in containers of Pyxis and Enroot.
    """

    def __init__(
        self, config: TelemetryConfig, context: ParallelContext, directory: RunDirectory, stop: StopSignals
    ) -> None:
        self._directory, self._stop, self._is_main = directory, stop, context.is_main
        self._stacks = StackDump(directory.stacks(context.rank), wait_s=config.hang_s)
        self._profile = ProfileOnDemand(
            directory.profile_request, directory.traces, steps=config.profile_steps, device=context.device
        )

    def begin_step(self, step: int) -> None:
        self._stacks.beat()
        if self._is_main:
            self._profile.begin_step(step)

    def end_step(self, step: int) -> None:
        """After the step and before `StopSignals.agree`."""
        self._stacks.beat()
        if self._is_main:
            self._profile.end_step(step)
            if self._directory.stop_request.exists():
                self._directory.stop_request.unlink(missing_ok=True)
                self._stop.note_file()

    def __enter__(self) -> Self:
        self._stacks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stacks.__exit__(kind, error, traceback)
        self._profile.close()
