"""The page over HTTP: its files, what it shows at first, and drawings as streams of events."""

import errno
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any  # JSON values

from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from diffmoe_scale.json_text import parse_json
from diffmoe_scale.page.worker import Worker

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).with_name("assets")
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/heat_map.js": ("heat_map.js", "text/javascript"),
}
HEADERS = {
    # Nothing of another server is loaded, and no other page can show this one.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine in requests, beside the address that is listened at."""
PORT = re.compile(r":\d+$")
MAX_BODY = 200_000


class App:
    """`start` says what the page shows at first. With `hosts` only requests by one of these names are
    answered: a page of another name that leads to this machine cannot draw."""

    def __init__(self, worker: Worker, start: Callable[[], Any], *, hosts: tuple[str, ...]) -> None:
        self.worker, self.start, self.hosts = worker, start, hosts

    def __call__(self, environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        request.max_content_length = MAX_BODY
        try:
            response = self.answer(request)
        except HTTPException as error:
            response = _say(error.code or 500, error.description or error.name)
        response.headers.update(HEADERS)
        return response(environ, start_response)

    def answer(self, request: Request) -> Response:
        if self.hosts and PORT.sub("", request.headers.get("Host", "")) not in self.hosts:
            return _say(
                403, f"this page is for {', '.join(self.hosts)} alone; start it with --host for others"
            )
        match request.method, request.path:
            case "GET", path if path in FILES:
                name, kind = FILES[path]
                return Response((ASSETS / name).read_bytes(), content_type=f"{kind}; charset=utf-8")
            case "GET", "/start":
                return Response(json.dumps(self.start()), content_type="application/json")
            case "POST", "/draw":
                # A form of another page cannot have this type.
                if request.mimetype != "application/json":
                    return _say(415, "expected application/json")
                try:
                    form = parse_json(request.get_data())
                except ValueError as error:
                    return _say(400, f"what the page sent is no JSON ({error})")
                return Response(_lines(self.worker, form), content_type="application/x-ndjson")
        return _say(404, f"{request.method} {request.path[:200]} is not of this page")


def _lines(worker: Worker, form: object) -> Iterator[str]:
    for event in worker.events(form):
        yield json.dumps(event) + "\n"


def _say(code: int, text: str) -> Response:
    return Response(text + "\n", status=code, content_type="text/plain; charset=utf-8")


class _Quiet(WSGIRequestHandler):
    """Does not log each request."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises: ValueError if it cannot, saying why."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; expected 0 (any free one) to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            why = "another program uses it; choose another --port, or 0 for any free one"
        elif number == errno.EACCES:
            why = "ports below 1024 are for the system; choose a larger --port"
        else:
            why = f"{error}; give this machine's own name or address"
        raise ValueError(f"--host {host} --port {port} cannot be opened: {why}") from error


def make_page_server(app: App, listener: socket.socket) -> BaseWSGIServer:
    """Each request in a thread of its own: while a picture is drawn the page is answered."""
    host, port = listener.getsockname()[:2]
    return make_server(host, port, app, threaded=True, request_handler=_Quiet, fd=listener.fileno())


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def hosts_of(listener: socket.socket) -> tuple[str, ...]:
    """For `App`: the names of this machine, or none where others reach it."""
    return (*LOCAL, listener.getsockname()[0]) if is_local(listener) else ()


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    host = listener.getsockname()[0]
    return host.startswith("127.") or host == "::1"
