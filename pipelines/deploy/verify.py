"""The new server, asked through its Service as any client asks it."""

import json
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from pydantic import SecretStr

from server.errors import UserError

_ANSWER_SECONDS = 60
_PAUSE_SECONDS = 1.0
_IN_A_ROW = 5  # answers: each may come from another pod
_LATER = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class Service:
    """A connection for each request, so that the pods answer in turn; without a proxy, for it is near."""

    def __init__(self, url: str, *, key: SecretStr | None, patience_seconds: float) -> None:
        self._url, self._key, self._patience = url.rstrip("/"), key, patience_seconds
        self._pause = min(_PAUSE_SECONDS, patience_seconds / 10)
        self._open = build_opener(ProxyHandler({})).open

    def until_it_has(self, sha256: str) -> dict[str, Any]:
        """What /health says as soon as every pod has this model; UserError when one has another for too long."""
        end, same = time.monotonic() + self._patience, 0
        while True:
            health: dict[str, Any] = self._ask("/health")
            same = same + 1 if health.get("sha256") == sha256 else 0
            if same == _IN_A_ROW:
                return health
            if not same:
                if time.monotonic() > end:
                    raise UserError(
                        f"{self._url} answers with another model: its sha256 is {health.get('sha256')}, not {sha256}"
                    )
                time.sleep(self._pause)

    def labels(self, texts: Sequence[str], health: dict[str, Any]) -> list[str]:
        """The label of each text, in batches as large as the server takes them."""
        size, longest = int(health["max_batch_texts"]), int(health["max_text_characters"])
        found: list[str] = []
        for start in range(0, len(texts), size):
            batch = [text[:longest] for text in texts[start : start + size]]
            found += [str(answer["label"]) for answer in self._ask("/predict/batch", {"texts": batch})]
        return found

    def _ask(self, path: str, body: object = None) -> Any:  # noqa: ANN401 - whatever is answered
        """The answer of a server that is there and has room; UserError when patience ends, or it refuses for good."""
        end = time.monotonic() + self._patience
        while True:
            try:
                return self._answer(path, body)
            except HTTPError as error:
                reason = f"HTTP {error.code} {error.read(1000).decode(errors='replace')}".strip()
                if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                    how = "does not take this one" if self._key else "got none"
                    raise UserError(f"{self._url}{path} wants an API key and {how}: set api_key_file ({reason})") from None  # fmt: skip
                if error.code not in _LATER or time.monotonic() > end:
                    raise UserError(f"{self._url}{path}: {reason}") from None
            except (URLError, ConnectionError, TimeoutError, ValueError) as error:
                if time.monotonic() > end:
                    raise UserError(f"{self._url}{path} cannot be asked: {error}") from error
            time.sleep(self._pause)

    def _answer(self, path: str, body: object) -> Any:  # noqa: ANN401
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["X-API-Key"] = self._key.get_secret_value()
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self._url}{path}", data, headers)  # noqa: S310 - http or https, as the settings check
        with self._open(request, timeout=_ANSWER_SECONDS) as response:
            return json.load(response)
