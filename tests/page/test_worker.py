"""One picture after another; a drawing that nobody waits for ends."""

import threading
import time

import pytest

from diffmoe_scale.page.drawing import Stopped
from diffmoe_scale.page.worker import Worker


def say(form, send):
    for number in range(form):
        send({"kind": "status", "text": str(number)})


def texts(events):
    return [event["text"] for event in events if event["kind"] == "status"]


def test_events_come_in_order_and_end():
    worker = Worker(say)
    assert texts(worker.events(3)) == ["0", "1", "2"]
    assert texts(worker.events(1)) == ["0"]
    worker.close()


def test_a_drawing_that_fails_ends_its_events():
    def fail(form, send):
        send({"kind": "status", "text": "before"})
        raise RuntimeError

    worker = Worker(fail)
    assert texts(worker.events(None)) == ["before"]
    worker.close()


def test_closing_the_events_stops_the_drawing_and_the_next_one_follows():
    ended = threading.Event()
    may_go_on = threading.Event()

    def draw(form, send):
        if form == "second":
            send({"kind": "status", "text": "drawn"})
            return
        send({"kind": "status", "text": "begun"})
        may_go_on.wait(20)
        try:
            send({"kind": "status", "text": "never seen"})
        except Stopped:
            ended.set()
            raise

    worker = Worker(draw)
    first = worker.events("first")
    assert next(first)["text"] == "begun"
    second = worker.events("second")
    assert next(second)["text"] == "another picture is drawn first"
    first.close()
    may_go_on.set()
    assert texts(second) == ["drawn"]
    assert ended.is_set()
    worker.close()


def test_a_browser_that_waits_hears_signs_of_life(monkeypatch):
    monkeypatch.setattr("diffmoe_scale.page.worker.WAIT_S", 0.01)
    may_go_on = threading.Event()
    worker = Worker(lambda form, send: print(may_go_on.wait(20)))
    events = worker.events(None)
    assert next(events)["kind"] == "alive"
    may_go_on.set()
    assert all(event["kind"] == "alive" for event in events)
    worker.close()


def test_what_waits_when_the_page_ends_is_not_begun():
    drawn = []
    may_go_on = threading.Event()

    def draw(form, send):
        drawn.append(form)
        may_go_on.wait(20)

    worker = Worker(draw)
    threads = [threading.Thread(target=list, args=[worker.events(number)]) for number in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while (len(worker._stops) < 2 or not drawn) and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.close()
    may_go_on.set()
    for thread in threads:
        thread.join(20)
    assert len(drawn) == 1 and not any(thread.is_alive() for thread in threads)
    with pytest.raises(RuntimeError):
        next(worker.events(3))
