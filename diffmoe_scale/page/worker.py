"""The thread that draws, one picture after another."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

from diffmoe_scale.page.drawing import Event, Send, Stopped

WAIT_S = 1.0
"""Between two signs of life to a browser: one that left is noticed by the failure to write them."""
ALIVE: Event = {"kind": "alive"}


class Worker:
    """Draws in the order in which pictures were asked for."""

    def __init__(self, draw: Callable[[object, Send], None]) -> None:
        self.draw = draw
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="draw")
        self._stops: set[threading.Event] = set()

    def events(self, form: object) -> Generator[Event, None, None]:
        """The events of a drawing as they come. Closing the iterator stops the drawing."""
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        stop = threading.Event()

        def send(event: Event) -> None:
            if stop.is_set():
                raise Stopped
            events.put(event)

        def work() -> None:
            try:
                if not stop.is_set():
                    self.draw(form, send)
            finally:
                events.put(None)

        is_busy = bool(self._stops)
        self._stops.add(stop)
        try:
            self._thread.submit(work)
            if is_busy:
                yield {"kind": "status", "text": "another picture is drawn first"}
            yield from _until_end(events)
        finally:
            stop.set()
            self._stops.discard(stop)

    def close(self) -> None:
        """Stop what is drawn and what waits."""
        for stop in list(self._stops):
            stop.set()
        self._thread.shutdown(wait=False)


def _until_end(events: "queue.SimpleQueue[Event | None]") -> Iterator[Event]:
    while True:
        try:
            event = events.get(timeout=WAIT_S)
        except queue.Empty:
            event = ALIVE
        if event is None:
            return
        yield event
