"""The page over HTTP, without a browser and without a model."""

import errno
import json
import socket
import threading
import urllib.request

import pytest
from werkzeug.test import Client

from diffmoe_scale.page.server import LOCAL, App, address_of, hosts_of, is_local, make_page_server, open_port
from diffmoe_scale.page.worker import Worker


def echo(form, send):
    send({"kind": "status", "text": json.dumps(form)})


@pytest.fixture
def client():
    worker = Worker(echo)
    yield Client(App(worker, lambda: {"step": 4}, hosts=LOCAL))
    worker.close()


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/heat_map.js"])
def test_files_of_the_page_name_no_other_server(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    for rule in ("default-src 'self'", "frame-ancestors 'none'"):
        assert rule in answer.headers["Content-Security-Policy"]
    assert "http://" not in answer.text.replace("http://www.w3.org", "") and "https://" not in answer.text


def test_start_and_a_drawing(client):
    assert client.get("/start").json == {"step": 4}
    answer = client.post("/draw", json={"prompt": "a"})
    (line,) = [json.loads(line) for line in answer.text.splitlines()]
    assert json.loads(line["text"]) == {"prompt": "a"}


@pytest.mark.parametrize(
    "ask, code, says",
    [
        (lambda client: client.get("/../setup.py"), 404, "is not of this page"),
        (lambda client: client.get("/draw"), 404, "GET /draw is not of this page"),
        (lambda client: client.post("/draw", data="{}"), 415, "expected application/json"),
        (
            lambda client: client.post("/draw", data="{", content_type="application/json"),
            400,
            "what the page sent is no JSON",
        ),
        (
            lambda client: client.post("/draw", data="[" * 100_000, content_type="application/json"),
            400,
            "what the page sent is no JSON",
        ),
        (
            lambda client: client.post("/draw", data=" " * 300_000, content_type="application/json"),
            413,
            "exceeds the capacity limit",
        ),
        (
            lambda client: client.get("/", headers={"Host": "other.example"}),
            403,
            "this page is for localhost",
        ),
    ],
)
def test_what_is_no_request_of_the_page_is_refused(client, ask, code, says):
    answer = ask(client)
    assert answer.status_code == code and says in answer.text


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:7860", "[::1]:7860"])
def test_names_of_this_machine_are_answered(client, host):
    assert client.get("/start", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host, is_answered", [("127.0.1.1", True), ("0.0.0.0", None)])
def test_the_address_that_is_listened_at_is_a_name_of_this_machine(host, is_answered):
    with open_port(host, 0) as listener:
        hosts = hosts_of(listener)
    assert (host in hosts) == bool(is_answered)
    assert ("localhost" in hosts) == bool(is_answered)


def test_a_port_in_use_and_other_wrong_ones_are_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port} cannot be opened: another program uses it"):
            open_port("127.0.0.1", port)
    with pytest.raises(ValueError, match="--port is 70000; expected 0"):
        open_port("127.0.0.1", 70_000)
    with pytest.raises(ValueError, match=r"--host no\.such\.invalid"):
        open_port("no.such.invalid", 0)
    with pytest.raises(ValueError, match="give this machine's own name or address"):
        open_port("a." * 200, 0)  # no name that could be asked for


def test_a_port_of_the_system_is_said(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ValueError, match="ports below 1024 are for the system"):
        open_port("127.0.0.1", 80)


@pytest.mark.parametrize(
    "host, expected, begins",
    [
        ("127.0.0.1", True, "http://127.0.0.1:"),
        ("0.0.0.0", False, "http://0.0.0.0:"),
        ("::1", True, "http://[::1]:"),
        ("::", False, "http://[::]:"),
    ],
)
def test_a_port_of_all_networks_is_not_local(host, expected, begins):
    try:
        listener = open_port(host, 0)
    except ValueError:
        pytest.skip(f"{host} is no address of this machine")
    with listener:
        assert is_local(listener) == expected and address_of(listener).startswith(begins)


def test_the_page_answers_while_a_picture_is_drawn():
    is_over = threading.Event()

    def wait(form, send):
        is_over.wait(60)

    worker = Worker(wait)
    with open_port("127.0.0.1", 0) as listener:
        server = make_page_server(App(worker, lambda: {"step": 4}, hosts=LOCAL), listener)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = address_of(listener)
            headers = {"Content-Type": "application/json"}
            asked = urllib.request.Request(f"{address}/draw", data=b"{}", headers=headers)
            with urllib.request.urlopen(asked, timeout=60):
                with urllib.request.urlopen(f"{address}/start", timeout=60) as answer:
                    assert json.load(answer) == {"step": 4}
                is_over.set()
        finally:
            is_over.set()
            server.shutdown()
            thread.join()
            server.server_close()
            worker.close()
