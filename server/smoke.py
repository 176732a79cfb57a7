"""Ask a server for a prediction, as a client does: `python -m server.smoke URL`. `helm test` runs it."""

import argparse
import json
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

_TEXT = "Late goal wins the cup"
_NOT_YET = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class SmokeError(RuntimeError):
    """Why there is no prediction."""


def ask(url: str, *, key: str | None, wait_seconds: float) -> dict[str, Any]:
    """The prediction; a server that cannot be reached or is busy is asked again until the time is over."""
    until = time.monotonic() + wait_seconds
    while True:
        try:
            return _predict(url, key)
        except HTTPError as error:
            reason = f"status {error.code}: {error.read(1000).decode(errors='replace')}"
            again = error.code in _NOT_YET
        except (URLError, TimeoutError, ConnectionError) as error:
            reason, again = str(error), True
        if not again or time.monotonic() > until:
            raise SmokeError(f"{url}/predict gave no prediction: {reason}")
        time.sleep(1)


def _predict(url: str, key: str | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | ({"X-API-Key": key} if key else {})
    request = Request(f"{url}/predict", json.dumps({"text": _TEXT}).encode(), headers)  # noqa: S310 - as told
    with urlopen(request, timeout=10) as answer:  # noqa: S310 - the same
        prediction: dict[str, Any] = json.load(answer)
    return prediction


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m server.smoke", description="Ask a server for a prediction.")
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8080")
    parser.add_argument("--key-file", metavar="FILE", type=Path, help="with the API key, where the server wants one")
    parser.add_argument("--wait-seconds", metavar="SECONDS", type=float, default=60, help="for a server to be ready")
    given = parser.parse_args(args)
    try:
        key = given.key_file.read_text(encoding="utf-8").strip() if given.key_file else None
        prediction = ask(given.url.rstrip("/"), key=key, wait_seconds=given.wait_seconds)
    except (SmokeError, OSError) as error:
        print(f"python -m server.smoke: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    print(f"{_TEXT!r} is {prediction['label']}, with confidence {prediction['confidence']:.3f}", flush=True)


if __name__ == "__main__":
    main()
