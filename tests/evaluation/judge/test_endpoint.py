"""A judge behind a server of this machine that speaks OpenAI's protocol."""

import base64
import http.client
import json
import math
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any  # JSON values

import pytest

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.evaluation import JudgeConfig
from diffmoe_scale.evaluation.judge import endpoint
from diffmoe_scale.evaluation.judge.endpoint import EndpointJudge, first_token_probability
from diffmoe_scale.evaluation.suites.suite import Answer, Question

PICTURE = b"\x89PNG not looked at"
YES = Question("0", "Is there a cat?", ("Yes", "yes", " yes", " Yes"))


class Server:
    """Keeps what it was asked; gives the replies in turn, the last one for ever."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.replies: list[tuple[int, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, dict(self.headers), body))
                status, reply = server.replies[min(len(server.asked), len(server.replies)) - 1]
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # must not be used
    found = Server()
    thread = Thread(target=found.http.serve_forever, daemon=True)
    thread.start()
    yield found
    found.http.shutdown()
    found.http.server_close()


def judge_of(server: Server, **settings: Any) -> EndpointJudge:
    return EndpointJudge(JudgeConfig(kind="endpoint", url=server.url, model="judge-8b", **settings))


def reply(text: str, tokens: dict[str, float] | None = None) -> tuple[int, Any]:
    """As vLLM writes it; `tokens` are probabilities."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    if tokens is not None:
        top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in tokens.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]}
    return 200, {"object": "chat.completion", "choices": [choice]}


def test_question_picture_and_key_are_sent_and_probabilities_added(server: Server, tmp_path: Any) -> None:
    (tmp_path / "key").write_text("secret\n", encoding="utf-8")
    server.replies = [reply("Yes", {"Yes": 0.6, " yes": 0.15, "Yesterday": 0.1, "No": 0.1}), reply("HELLO")]
    judge = judge_of(server, key_file=str(tmp_path / "key"))
    answers = judge.answer(PICTURE, [YES, Question("text", "Read.")])
    assert [answer.text for answer in answers] == ["Yes", "HELLO"]
    assert answers[0].probability == pytest.approx(0.75) and answers[1].probability is None
    (path, headers, body), (_, _, free) = server.asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
    assert text["text"] == "Is there a cat?" and body["model"] == "judge-8b" and body["logprobs"] is True
    assert body["temperature"] == 0 and body["top_logprobs"] == 20
    assert body["max_tokens"] == 1 and "logprobs" not in free and free["max_tokens"] > 1
    assert "secret" not in json.dumps(judge.description)


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.replies = [(503, b"busy"), (200, b"<html>"), (429, b""), reply("No", {"No": 0.9})]
    assert judge_of(server).answer(PICTURE, [YES]) == [Answer("No", 0.0)]
    assert len(server.asked) == 4


def test_pauses_double_up_to_half_a_minute(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", pauses.append)
    server.replies = [(503, b"busy")]
    with pytest.raises(RunError, match="HTTP 503"):
        judge_of(server, attempts=8).answer(PICTURE, [YES])
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_a_reply_that_is_no_http_is_asked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: EndpointJudge, body: bytes) -> tuple[int, bytes]:
        raise http.client.BadStatusLine("SSH-2.0")

    monkeypatch.setattr(EndpointJudge, "_request", fail)
    with pytest.raises(RunError, match=r"cannot be asked \(BadStatusLine: SSH-2\.0\)"):
        judge_of(server, attempts=2).answer(PICTURE, [YES])


def test_a_server_that_stays_away_or_refuses_is_a_sentence(server: Server) -> None:
    server.replies = [(503, b"busy")]
    with pytest.raises(
        RunError, match=r"cannot be asked \(HTTP 503: busy\); what was answered before is kept"
    ):
        judge_of(server, attempts=3).answer(PICTURE, [YES])
    assert len(server.asked) == 3
    server.replies = [(404, b"no model judge-8b")]
    with pytest.raises(RunError, match="HTTP 404: no model judge-8b"):
        judge_of(server).answer(PICTURE, [YES])
    assert len(server.asked) == 4
    nobody = JudgeConfig(kind="endpoint", url="http://127.0.0.1:1/v1", model="x", attempts=2)
    with pytest.raises(RunError, match="ConnectionRefusedError"):
        EndpointJudge(nobody).answer(PICTURE, [YES])


@pytest.mark.parametrize("answer", [{}, {"choices": []}, [], reply("Yes")[1], None])
def test_a_reply_without_probabilities_is_a_sentence(server: Server, answer: Any) -> None:
    server.replies = [(200, answer)]
    with pytest.raises(RunError, match=r"without the probabilities of tokens \(logprobs\)"):
        judge_of(server).answer(PICTURE, [YES])


@pytest.mark.parametrize("number", [math.nan, math.inf, "high", None, pytest.param(10**400, id="huge")])
def test_a_probability_that_is_no_number_is_a_sentence_and_no_right_answer(
    server: Server, number: Any
) -> None:
    top = [{"token": "Yes", "logprob": number}]
    choice = {"message": {"content": "Yes"}, "logprobs": {"content": [{"top_logprobs": top}]}}
    server.replies = [(200, {"choices": [choice]})]
    with pytest.raises(RunError, match=r"without the probabilities of tokens \(logprobs\)"):
        judge_of(server).answer(PICTURE, [YES])


@pytest.mark.parametrize(
    "url", ["10.0.0.5:8000", "ftp://a/v1", "http://", "http://a:99999/v1", "http://a/v1?x=1"]
)
def test_addresses_that_are_none_are_named(url: str) -> None:
    with pytest.raises(ValueError, match=r"judge\.url"):
        EndpointJudge(JudgeConfig(kind="endpoint", url=url, model="x"))


@pytest.mark.parametrize("key", ["secret\nsecond line", "secr\u00e9t\u20ac", "two secrets"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(
    server: Server, key: str, tmp_path: Path
) -> None:
    """http.client's error would print it, once pictures are drawn."""
    (tmp_path / "key").write_text(key, encoding="utf-8")
    with pytest.raises(ValueError, match=r"judge\.key_file .*key holds .*; expected") as error:
        judge_of(server, key_file=str(tmp_path / "key"))
    assert "secr" not in str(error.value)


def test_a_key_file_that_is_not_there_is_named(server: Server) -> None:
    with pytest.raises(ValueError, match=r"judge\.key_file cannot be used: .*none"):
        judge_of(server, key_file="/none")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([("Yes", -1.0), ("yes", -2.0), ("No", -0.1)], math.exp(-1) + math.exp(-2)),
        ([("Yes", -1.0), ("Yes", -1.0)], math.exp(-1)),  # a server that names a token twice
        ([("Yes", 0.1)], 1.0),  # rounded above 1
        ([("Yes", -0.1), (" yes", -0.1)], 1.0),
    ],
)
def test_probabilities_add_up_to_at_most_1(tokens: list[tuple[str, float]], expected: float) -> None:
    top = [{"token": token, "logprob": number} for token, number in tokens]
    assert first_token_probability([{"top_logprobs": top}], YES.answers) == pytest.approx(expected)


def test_an_empty_answer_and_an_address_with_a_slash_are_taken(server: Server) -> None:
    server.replies = [(200, {"choices": [{"message": {"content": None}}]})]
    config = JudgeConfig(kind="endpoint", url=f"{server.url}/", model="x")
    assert EndpointJudge(config).answer(PICTURE, [Question("text", "Read.")]) == [Answer("")]
    assert server.asked[0][0] == "/v1/chat/completions"


def test_https_is_spoken_where_the_address_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(host: str, port: int | None, *, timeout: float) -> None:
        raise ConnectionError(f"{host} {port} by https")

    monkeypatch.setattr(http.client, "HTTPSConnection", refuse)
    config = JudgeConfig(kind="endpoint", url="https://localhost:9/v1", model="x", attempts=1)
    with pytest.raises(RunError, match="localhost 9 by https"):
        EndpointJudge(config).answer(PICTURE, [YES])
