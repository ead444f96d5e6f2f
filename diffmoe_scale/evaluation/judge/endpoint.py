"""A judge behind a server that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp, ...), by the standard
library.

No proxy and no variable of the environment is used: pictures go to the address that the settings name alone.
"""

import base64
import http.client
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any  # JSON values
from urllib.parse import urlsplit

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.evaluation import JudgeConfig
from diffmoe_scale.evaluation.suites.suite import Answer, Question
from diffmoe_scale.json_text import parse_json

logger = logging.getLogger(__name__)

TOP = 20
"""Tokens whose probabilities are asked for, the most that servers give."""
LONGEST_ANSWER = 1024
"""Tokens of text that is read in a picture."""
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be another at the next attempt."""
LONGEST_PAUSE_S = 30.0


class EndpointJudge:
    """Asks for the first token with the probabilities of the likeliest tokens, or for text."""

    def __init__(self, config: JudgeConfig) -> None:
        """Raises: ValueError for an address that is none, or a key file that cannot be read."""
        parts = urlsplit(config.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(
                f"judge.url is {config.url!r:.120}; expected an address such as http://10.0.0.5:8000/v1"
            )
        try:
            self._port = parts.port
            key = Path(config.key_file).read_text(encoding="utf-8").strip() if config.key_file else ""
        except (ValueError, OSError) as error:
            raise ValueError(f"judge.url or judge.key_file cannot be used: {error}") from error
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError(
                f"judge.key_file {config.key_file} holds spaces, several lines or letters beyond ASCII; "
                "expected the key alone"
            )
        self.config = config
        self._host, self._is_secure = parts.hostname, parts.scheme == "https"
        self._path = f"{parts.path.rstrip('/')}/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self.description: Mapping[str, Any] = {"kind": "endpoint", "url": config.url, "model": config.model}
        text = json.dumps(self.description, sort_keys=True)
        self.fingerprint = sha256(text.encode()).hexdigest()[:12]

    def answer(self, picture: bytes, questions: Sequence[Question]) -> list[Answer]:
        image = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        return [self._ask(image, question) for question in questions]

    def _ask(self, image: str, question: Question) -> Answer:
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": question.text},
        ]
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 1 if question.answers else LONGEST_ANSWER,
        }
        if question.answers:
            body |= {"logprobs": True, "top_logprobs": TOP}
        reply = self._post(json.dumps(body).encode())
        try:
            choice = reply["choices"][0]
            text = str(choice["message"]["content"] or "")
            if not question.answers:
                return Answer(text)
            return Answer(text, first_token_probability(choice["logprobs"]["content"], question.answers))
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise RunError(
                f"the judge at {self.config.url} answered without "
                f"{'the probabilities of tokens (logprobs)' if question.answers else 'text'}: "
                f"{json.dumps(reply)[:200]}; use a server and a model that give them"
            ) from error

    def _post(self, body: bytes) -> Any:
        """The JSON of the reply. Raises: RunError once all attempts have failed, or at once for a refusal."""
        problem = ""
        for attempt in range(self.config.attempts):
            if attempt:
                pause = min(LONGEST_PAUSE_S, 2.0 ** (attempt - 1))
                logger.info("judge: %s; asked again in %g s", problem, pause)
                time.sleep(pause)
            try:
                status, data = self._request(body)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if status == 200:
                try:
                    return parse_json(data)
                except ValueError:
                    problem = f"no JSON: {data[:100]!r}"
                    continue
            problem = f"HTTP {status}: {data[:200].decode('utf-8', 'replace')}"
            if status not in BUSY:
                break
        raise RunError(
            f"the judge at {self.config.url} cannot be asked ({problem}); what was answered before is kept: "
            "see to the server (judge.url, judge.model) and run again"
        )

    def _request(self, body: bytes) -> tuple[int, bytes]:
        make = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        connection = make(self._host, self._port, timeout=self.config.timeout_s)
        try:
            connection.request("POST", self._path, body, self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def first_token_probability(tokens: Any, answers: Sequence[str]) -> float:
    """The probability that the first token is that of a right answer: its whole text, or the beginning of it.

    Raises: LookupError, TypeError, ValueError or OverflowError for a reply without probabilities.
    """
    total = 0.0
    seen = set()
    for entry in tokens[0]["top_logprobs"]:
        token = str(entry["token"])
        if token in answers and token not in seen:
            seen.add(token)
            logprob = float(entry["logprob"])
            if not logprob < math.inf:  # min() would make 0 of NaN, a right answer
                raise ValueError(f"the logprob {logprob}")
            total += math.exp(min(0.0, logprob))
    return min(1.0, total)
