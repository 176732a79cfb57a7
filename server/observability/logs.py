"""The record of each request, and the log on standard error: text to read, or one JSON object a line to collect."""

import json
import logging
import logging.config
import re
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from server.settings import Settings

if TYPE_CHECKING:
    from server.inference.classifier import Answer

Rejection = Literal["queue_full", "deadline", "client_left", "unauthorized", "rate_limited", "invalid"]
"""Reason why a request to a route gets no answer."""

UNMATCHED = "unmatched"
"""Route of all paths that have none: a scanner must not create a series for each."""

PROBES = frozenset({"/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready"})
"""Routes that are called all the time: logged at level debug and never traced."""

_REQUESTS = logging.getLogger("distrinews.requests")
_IN_MESSAGE = frozenset({"method", "route", "status"})
_PLAIN = re.compile(r"[\w.:/+=@-]+", re.ASCII)


@dataclass(slots=True)
class RequestRecord:
    """Collects the facts of one request while it is answered; metrics, spans and the log line are made from it."""

    request_id: str
    """Sent by the client in X-Request-ID, or generated."""
    method: str
    traceparent: str | None = None
    """Header of the W3C trace that the client sent."""
    trace_id: str | None = None
    """Id of the trace from that header, or of the trace that begins here."""
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    route: str = UNMATCHED
    """Template, such as /v2/models/{name}."""
    status: int = 0
    caller: str | None = None
    """Name of the API key, or subject of the token."""
    texts: Sequence[str] = ()
    answer: "Answer | None" = None
    rejected: Rejection | None = None
    """Set where the status alone does not give the reason, else derived from it."""


CURRENT: ContextVar[RequestRecord] = ContextVar("current_request")
"""Record of the request that this task answers."""


def start_logs(settings: Settings) -> None:
    """Sends every log record, also those of libraries, to standard error in the chosen format."""
    formatter = {"text": TextFormatter, "json": JsonFormatter}[settings.log_format]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"chosen": {"()": formatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "chosen"}},
            "root": {"handlers": ["stderr"], "level": settings.log_level.upper()},
            # Its warnings are two for each request of a client that offers HTTP/2, and one for each that a scanner sends.
            "loggers": {"uvicorn.error": {"level": "ERROR"}},
        }
    )
    if settings.log_texts:
        logging.getLogger("distrinews").warning("--log-texts: the log will hold every text that the server receives")


def announce(message: str, settings: Settings) -> None:
    """Prints the first line of standard output; a program may read it, so it is JSON if the log is."""
    if settings.log_format == "json":
        message = JsonFormatter().format(logging.LogRecord("distrinews", logging.INFO, "", 0, message, None, None))
    print(message, flush=True)


def request_log(*, texts: bool) -> Callable[[RequestRecord], None]:
    """Returns a function that logs a request: at level info, a probe at level debug."""

    def write(record: RequestRecord) -> None:
        level = logging.DEBUG if record.route in PROBES else logging.INFO
        if _REQUESTS.isEnabledFor(level):
            facts = _facts(record) | ({"text": list(record.texts)} if texts else {})
            _REQUESTS.log(level, "%s %s %d", record.method, record.route, record.status, extra={"facts": facts})

    return write


def _facts(record: RequestRecord) -> dict[str, Any]:
    answer = record.answer
    facts: dict[str, Any] = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "caller": record.caller,
        "rejected": record.rejected,
        "total_ms": _milliseconds(record.seconds),
        "queue_ms": answer and _milliseconds(answer.queue_seconds),
        "tokenize_ms": answer and _milliseconds(answer.tokenize_seconds),
        "infer_ms": answer and _milliseconds(answer.infer_seconds),
        "texts": len(record.texts),
        "tokens": answer and answer.tokens,
        "truncated": answer and sum(prediction.truncated for prediction in answer.predictions),
    }
    return facts


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """Writes one object a line; a record that is logged while a request is answered has its id."""

    def format(self, record: logging.LogRecord) -> str:
        written = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().rstrip(),
        }
        request = CURRENT.get(None)
        written |= getattr(record, "facts", {"request_id": request.request_id} if request else {})
        if record.exc_info:
            written["exception"] = self.formatException(record.exc_info)
        return json.dumps(written, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """Writes time, level and message, and the facts of a request as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        pairs = [
            f" {name}={_quoted(fact)}" for name, fact in facts.items() if name not in _IN_MESSAGE and fact is not None
        ]
        line = f"{_time(record)} {record.levelname.lower():<7} {record.getMessage().rstrip()}{''.join(pairs)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _quoted(fact: object) -> str:
    """Quotes a value unless nothing in it could end the value or the line."""
    return fact if isinstance(fact, str) and _PLAIN.fullmatch(fact) else json.dumps(fact)
