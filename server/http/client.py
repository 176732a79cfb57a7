"""The client of the server: waits for one that is busy or restarts, and turns each refusal into one line."""

import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Self, TypeVar

import httpx
from pydantic import BaseModel, Field, SecretStr, TypeAdapter, ValidationError
from pydantic_settings import SettingsConfigDict

from server.cli import Environment
from server.errors import UserError

_ANSWER_SECONDS = 300  # that a batch may take, in the queue too
_FIRST_WAIT, _SHORT_WAIT, _LONGEST_WAIT, _LONGEST_RETRY_AFTER = 0.5, 2.0, 30.0, 300.0
_CHECKS = 5  # in a row: each may be answered by another pod
_UNAVAILABLE = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
_FAULTY_TEXTS = {HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}

T = TypeVar("T")


class Prediction(BaseModel):
    """An answer of the server, which needs none of the libraries that compute one."""

    label: str
    confidence: float
    probabilities: dict[str, float]
    truncated: bool


class Health(BaseModel):
    """The parts of /health that a client needs."""

    labels: list[str] = Field(min_length=2)
    version: str
    engine: str
    variant: str
    sha256: str
    text_columns: list[str] = []
    max_batch_texts: int = Field(ge=1)
    max_text_characters: int = Field(ge=1)


_HEALTH, _PREDICTIONS = TypeAdapter(Health), TypeAdapter(list[Prediction])


class _Credentials(Environment):
    model_config = SettingsConfigDict(env_prefix="DISTRINEWS_")

    api_key: SecretStr | None = None


def read_api_key(file: Path | None = None) -> SecretStr | None:
    """Reads the API key from a file or, without one, from the variable DISTRINEWS_API_KEY."""
    if file is None:
        return _Credentials().api_key
    try:
        return SecretStr(file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"API key file {file}: cannot be read: {getattr(error, 'strerror', error)}") from error


class Client:
    """Classifies texts by a server; threads may share one.

    `patience_seconds` is the time for which the server may be unreachable or unavailable, `busy_seconds` the time for
    which it may have no room, in both cases for one request. `on_retry` gets a line before each longer wait.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: SecretStr | None = None,
        patience_seconds: float = 60,
        busy_seconds: float = 6000,
        new_connections: bool = False,
        proxies: bool = True,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        """With `new_connections`, each request may reach another pod; without `proxies`, the environment's are ignored."""
        self.url = re.sub(r"//[^/@]*@", "//", url.rstrip("/"))  # as messages show it: without a password
        self._patience_seconds, self._busy_seconds, self._on_retry = patience_seconds, busy_seconds, on_retry
        self._closed = threading.Event()
        headers = {"X-Request-Timeout-Ms": str(_ANSWER_SECONDS * 1000)}
        if api_key:
            headers["X-API-Key"] = api_key.get_secret_value()
        try:
            self._http = httpx.Client(
                base_url=url.rstrip("/"),
                headers={**headers, "Connection": "close"} if new_connections else headers,
                timeout=httpx.Timeout(_ANSWER_SECONDS + 10, connect=10, pool=None),
                trust_env=proxies,
            )
        except httpx.InvalidURL as error:
            raise UserError(f"{self.url}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; a request that waits for its next try ends with UserError."""
        self._closed.set()
        self._http.close()

    @cached_property
    def health(self) -> Health:
        """Returns the server's model and limits, as of the first time; UserError when this is no server of ours."""
        return self._read(_HEALTH, self._request("GET", "/health"))

    def wait_for_model(self, sha256: str, *, timeout_seconds: float) -> Health:
        """Waits until every pod serves the model whose manifest has this digest; UserError when one does not in time."""
        end, in_a_row = time.monotonic() + timeout_seconds, 0
        while True:
            health = self._read(_HEALTH, self._request("GET", "/health"))
            in_a_row = in_a_row + 1 if health.sha256 == sha256 else 0
            if in_a_row == _CHECKS:
                return health
            if not in_a_row:
                if time.monotonic() > end:
                    raise UserError(
                        f"{self.url} answers with another model: its sha256 is {health.sha256}, not {sha256}"
                    )
                self._sleep(min(1.0, timeout_seconds / 10))

    def classify(self, texts: Sequence[str]) -> list[Prediction | str]:
        """Classifies texts in batches of the size that the server takes: a prediction each, or why it refuses a text."""
        size = self.health.max_batch_texts
        batches = (texts[start : start + size] for start in range(0, len(texts), size))
        return [answer for batch in batches for answer in self._classify(batch)]

    def _classify(self, texts: Sequence[str]) -> list[Prediction | str]:
        if not texts:
            return []
        response = self._request("POST", "/predict/batch", {"texts": list(texts)})
        if response.is_success:
            predictions = self._read(_PREDICTIONS, response)
            if len(predictions) != len(texts):
                raise UserError(f"{self.url}/predict/batch: {len(predictions)} answers for {len(texts)} texts")
            return list(predictions)
        if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            if len(texts) == 1:
                return [_reason(response)]
            half = len(texts) // 2
            return [*self._classify(texts[:half]), *self._classify(texts[half:])]
        faults = self._faults(response, len(texts))
        answers = iter(self._classify([text for number, text in enumerate(texts) if number not in faults]))
        return [faults.get(number) or next(answers) for number in range(len(texts))]

    def _faults(self, response: httpx.Response, texts: int) -> dict[int, str]:
        """Returns the faults that a refusal names, by the number of the text; UserError when it names none."""
        try:
            named = {str(fault["place"]): str(fault["detail"]) for fault in response.json()["errors"]}
        except (ValueError, KeyError, TypeError):
            named = {}
        places = {place: re.fullmatch(r"body/texts/(\d+)(/.*)?", place) for place in named}
        faults = {int(found[1]): named[place] for place, found in places.items() if found and int(found[1]) < texts}
        if not faults:
            raise UserError(f"{self.url}/predict/batch: {_reason(response)}")
        return faults

    def _request(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Sends a request until it is answered; UserError when patience ends, or the server refuses for good."""
        failing_seconds = busy_seconds = 0.0
        tries, was_busy = 0, False
        while True:
            started = time.monotonic()
            response, reason = self._try(method, path, body)
            busy = response is not None and response.status_code == HTTPStatus.TOO_MANY_REQUESTS
            if response is not None and not busy and response.status_code not in _UNAVAILABLE:
                return self._accepted(path, response)
            tries, was_busy = (tries + 1 if busy == was_busy else 1), busy
            limit = self._busy_seconds if busy else self._patience_seconds
            left = limit - (busy_seconds if busy else failing_seconds)
            if left <= 0:
                raise UserError(f"{self.url}{path}: {reason}, for {limit:g} s")
            wait = min(_wait_seconds(response, tries), left)
            spent = time.monotonic() - started + wait
            busy_seconds, failing_seconds = (
                (busy_seconds + spent, 0.0) if busy else (busy_seconds, failing_seconds + spent)
            )
            if self._on_retry and wait > _SHORT_WAIT:
                self._on_retry(f"{self.url}{path}: {reason}; next try in {wait:.0f} s")
            self._sleep(wait)

    def _try(self, method: str, path: str, body: object) -> tuple[httpx.Response | None, str]:
        try:
            response = self._http.request(method, path, json=body)
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
            raise UserError(f"{self.url}: {error}") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            return None, f"{error or type(error).__name__}"
        return response, _reason(response)

    def _sleep(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise UserError(f"{self.url}: the client is closed")

    def _accepted(self, path: str, response: httpx.Response) -> httpx.Response:
        if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            found = "refuses this one" if "X-API-Key" in self._http.headers else "got none"
            raise UserError(f"{self.url}: wants an API key and {found}: set DISTRINEWS_API_KEY ({_reason(response)})")
        if not response.is_success and response.status_code not in _FAULTY_TEXTS:
            raise UserError(f"{self.url}{path}: {_reason(response)}")
        return response

    def _read(self, adapter: TypeAdapter[T], response: httpx.Response) -> T:
        try:
            return adapter.validate_json(response.content)
        except ValidationError:
            path = response.request.url.path
            raise UserError(f"{self.url}: {path} is not answered by a DistriNews server of this version: {_reason(response)}") from None  # fmt: skip


def _reason(response: httpx.Response) -> str:
    """Returns the answer in one line: its status, and the server's own words."""
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = response.text
    if response.is_redirect:
        detail = f"redirects to {response.headers.get('Location')}"
    detail = " ".join(detail.split())[:300]
    return f"HTTP {response.status_code}{': ' if detail else ''}{detail}"


def _wait_seconds(response: httpx.Response | None, tries: int) -> float:
    """Returns the time of Retry-After, or twice the last; randomized, so that clients do not return together."""
    asked = _retry_after(response.headers.get("Retry-After", "")) if response is not None else None
    wait = min(_FIRST_WAIT * 2 ** min(tries - 1, 10), _LONGEST_WAIT) if asked is None else min(asked, _LONGEST_RETRY_AFTER)  # fmt: skip
    return wait * random.uniform(1, 1.25)


def _retry_after(value: str) -> float | None:
    """Reads seconds, given as a number or as a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
