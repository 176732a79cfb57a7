"""A server that classifies over HTTP: asked patiently, and told nothing twice that it has answered."""

import asyncio
import random
import re
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx
from pydantic import BaseModel, Field, SecretStr, TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import UserError
from server.inference.classifier import Prediction

_ANSWER_SECONDS = 300  # that a batch may take, in the queue too
_FAILURES = 8  # in a row: with the waits between them, about a minute, in which a server restarts
_REFUSALS = 200  # in a row, by a server that is there but full
_LONGEST_WAIT = 30.0
_GONE = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
_PREDICTIONS = TypeAdapter(list[Prediction])


class Credentials(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, env_prefix="DISTRINEWS_", extra="ignore")

    api_key: SecretStr | None = None


class _Health(BaseModel):
    labels: list[str] = Field(min_length=2)
    version: str
    engine: str
    variant: str
    max_batch_texts: int = Field(ge=1)


class UrlModel:
    """Batches as large as the server takes them, so many at once."""

    def __init__(self, url: str, *, requests_at_once: int) -> None:
        self._url, self.requests_at_once = url.rstrip("/"), requests_at_once
        key = Credentials().api_key
        self._client = httpx.AsyncClient(
            headers={"X-API-Key": key.get_secret_value()} if key else {},
            timeout=httpx.Timeout(_ANSWER_SECONDS + 10, connect=10, pool=None),
            limits=httpx.Limits(max_connections=requests_at_once),
        )

    async def open(self) -> None:
        """Learn the classes and limits of the server; UserError when it is none of ours."""
        response = await self._ask("GET", "/health")
        try:
            health = _Health.model_validate_json(response.content)
        except ValidationError:
            raise UserError(f"{self._url}/health: is no DistriNews server of this version: {_said(response)}") from None
        self.labels, self.texts_at_once = tuple(health.labels), health.max_batch_texts
        self.identity: dict[str, Any] = health.model_dump(exclude={"max_batch_texts"})
        self.title = f"{self._url} ({health.variant} on {health.engine})"

    async def classify(self, texts: Sequence[str]) -> list[Prediction | str]:
        """The prediction for each text, or why the server refuses it."""
        if not texts:
            return []
        response = await self._ask("POST", "/predict/batch", json={"texts": list(texts)})
        if response.is_success:
            return list(_PREDICTIONS.validate_json(response.content))
        if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(texts) > 1:
            half = len(texts) // 2
            return [*await self.classify(texts[:half]), *await self.classify(texts[half:])]
        faults = _faults(response, len(texts))
        good = [text for number, text in enumerate(texts) if number not in faults]
        answers = iter(await self.classify(good))
        return [faults.get(number) or next(answers) for number in range(len(texts))]

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:  # noqa: ANN401 - as httpx takes it
        """The answer of a server that is there and has room, or what it refuses for good."""
        failures = refusals = 0
        while True:
            response, reason = await self._try(method, path, **body)
            if response is not None and response.status_code not in {*_GONE, HTTPStatus.TOO_MANY_REQUESTS}:
                return self._allowed(response)
            busy = response is not None and response.status_code == HTTPStatus.TOO_MANY_REQUESTS
            failures, refusals = (0, refusals + 1) if busy else (failures + 1, refusals)
            if failures == _FAILURES or refusals == _REFUSALS:
                raise UserError(f"{self._url}{path}: {reason}, {failures or refusals} times in a row")
            await asyncio.sleep(_wait_seconds(response, failures or refusals))

    async def _try(self, method: str, path: str, **body: Any) -> tuple[httpx.Response | None, str]:  # noqa: ANN401 - as httpx takes it
        headers = {"X-Request-Timeout-Ms": str(_ANSWER_SECONDS * 1000)}
        try:
            response = await self._client.request(method, self._url + path, headers=headers, **body)
        except httpx.UnsupportedProtocol as error:
            raise UserError(f"{self._url}: {error}") from error
        except httpx.TransportError as error:
            return None, f"{error or type(error).__name__}"
        return response, _said(response)

    def _allowed(self, response: httpx.Response) -> httpx.Response:
        if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            given = "does not take this one" if "X-API-Key" in self._client.headers else "got none"
            raise UserError(f"{self._url}: wants an API key and {given}: set DISTRINEWS_API_KEY ({_said(response)})")
        if not response.is_success and response.status_code not in (
            HTTPStatus.UNPROCESSABLE_ENTITY,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        ):
            raise UserError(f"{response.url}: {_said(response)}")
        return response


def _faults(response: httpx.Response, texts: int) -> dict[int, str]:
    """What is wrong with which text, as a refusal says it; UserError when it does not."""
    if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return {0: _said(response)}
    try:
        told = {str(fault["place"]): str(fault["detail"]) for fault in response.json()["errors"]}
    except (ValueError, KeyError, TypeError):
        told = {}
    places = {place: re.fullmatch(r"body/texts/(\d+)(/.*)?", place) for place in told}
    faults = {int(found[1]): told[place] for place, found in places.items() if found and int(found[1]) < texts}
    if not faults:
        raise UserError(f"{response.url}: {_said(response)}")
    return faults


def _said(response: httpx.Response) -> str:
    """A refusal in one line."""
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = " ".join(response.text.split())
    return f"HTTP {response.status_code}{': ' if detail else ''}{detail[:300]}"


def _wait_seconds(response: httpx.Response | None, attempt: int) -> float:
    """What the server asks for, or twice as long after each failure; with some chance, so that clients do not come together."""
    asked = _retry_after(response.headers.get("Retry-After", "")) if response is not None else None
    wait = min(0.5 * 2 ** min(attempt - 1, 10), _LONGEST_WAIT) if asked is None else min(asked, 10 * _LONGEST_WAIT)
    return wait * random.uniform(1, 1.25)


def _retry_after(value: str) -> float | None:
    """Seconds, given as such or as a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
