"""What is known of the request that is being answered."""

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from server.inference.classifier import Answer

Rejection = Literal["queue_full", "deadline", "client_left", "unauthorized", "rate_limited", "invalid"]
"""Why a request to a route has no answer."""

UNMATCHED = "unmatched"
"""Stands for the route of all paths that have none: a scanner must not make a series of each."""

PROBES = frozenset({"/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready"})
"""Routes that are asked all the time, and tell nothing when they are."""


@dataclass(slots=True)
class Record:
    """Of one request; whoever learns more while it is answered adds it."""

    request_id: str
    """Sent by the client in X-Request-ID, or given to it."""
    method: str
    traceparent: str | None = None
    """Of the W3C trace that the request belongs to, as the client sent it."""
    trace_id: str | None = None
    """From there, or of the trace that begins here."""
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    route: str = UNMATCHED
    """The template, such as /v2/models/{name}."""
    status: int = 0
    caller: str | None = None
    """The name of the API key."""
    texts: Sequence[str] = ()
    answered: "Answer | None" = None
    rejected: Rejection | None = None
    """Noted on the way where the status alone will not say it, else taken from that."""


CURRENT: ContextVar[Record | None] = ContextVar("current_request", default=None)
"""Of the request in whose task, or in whose endpoint's thread, this is asked."""


def note(**facts: object) -> None:
    """Add to the record of the current request, where there is one."""
    record = CURRENT.get()
    for name, fact in facts.items() if record else ():
        setattr(record, name, fact)
