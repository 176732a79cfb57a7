"""What is written while the server runs: lines to read, or one JSON object a line to collect."""

import json
import logging
import logging.config
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from server.observability.record import CURRENT, PROBES, Record
from server.settings import Settings

_REQUESTS = logging.getLogger("distrinews.requests")
_IN_MESSAGE = frozenset({"method", "route", "status"})
_PLAIN = re.compile(r"[\w.:/+=@-]+", re.ASCII)


def start_logs(settings: Settings) -> None:
    """Have every record, uvicorn's own too, written to standard error in the form that the settings ask for."""
    form = {"text": TextForm, "json": JsonForm}[settings.log_format]
    level = settings.log_level.upper()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"form": {"()": form}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "form"}},
            "root": {"handlers": ["stderr"], "level": level},
        }
    )
    if settings.log_texts:
        logging.getLogger("distrinews").warning("--log-texts: the log will hold every text that the server is sent")


def first_line(message: str, settings: Settings) -> str:
    """What standard output begins with: a program may read it, so that it is JSON where the log is."""
    if settings.log_format == "text":
        return message
    return JsonForm().format(logging.LogRecord("distrinews", logging.INFO, "", 0, message, None, None))


def request_log(*, texts: bool) -> Callable[[Record], None]:
    """Writes a line for each request; probes are asked all the time, and have one at level debug."""

    def write(record: Record) -> None:
        level = logging.DEBUG if record.route in PROBES else logging.INFO
        if _REQUESTS.isEnabledFor(level):
            facts = _facts(record) | ({"text": list(record.texts)} if texts else {})
            _REQUESTS.log(level, "%s %s %d", record.method, record.route, record.status, extra={"facts": facts})

    return write


def _facts(record: Record) -> dict[str, Any]:
    done = record.answered
    facts: dict[str, Any] = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "caller": record.caller,
        "rejected": record.rejected,
        "total_ms": _milliseconds(record.seconds),
        "queue_ms": done and _milliseconds(done.queue_seconds),
        "tokenize_ms": done and _milliseconds(done.tokenize_seconds),
        "infer_ms": done and _milliseconds(done.infer_seconds),
        "texts": len(record.texts),
        "tokens": done and done.tokens,
        "truncated": done and sum(prediction.truncated for prediction in done.predictions),
    }
    return facts


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonForm(logging.Formatter):
    """One object a line; a record that was made while a request was answered has its id."""

    def format(self, record: logging.LogRecord) -> str:
        written = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().rstrip(),
        }
        current = CURRENT.get()
        written |= getattr(record, "facts", {"request_id": current.request_id} if current else {})
        if record.exc_info:
            written["exception"] = self.formatException(record.exc_info)
        return json.dumps(written, ensure_ascii=True, default=str)


def _word(fact: object) -> str:
    """As it is where nothing in it can be taken for the end of it or of the line."""
    return fact if isinstance(fact, str) and _PLAIN.fullmatch(fact) else json.dumps(fact)


class TextForm(logging.Formatter):
    """Time, level, message, and of a request what is known, as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        pairs = [
            f" {name}={_word(fact)}" for name, fact in facts.items() if name not in _IN_MESSAGE and fact is not None
        ]
        line = f"{_time(record)} {record.levelname.lower():<7} {record.getMessage().rstrip()}{''.join(pairs)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
