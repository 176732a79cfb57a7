"""Events of some objects, each told once."""

from collections import OrderedDict
from collections.abc import Callable

from pipelines.job.settings import Object

_REMEMBERED = 5_000


class Events:
    """Knows which events have been told: Kubernetes counts an event that happens again, and sends it anew each time."""

    def __init__(self, is_ours: Callable[[str], bool], *, since: str) -> None:
        """Of objects with such names, and not from before a time as Kubernetes writes it."""
        self._is_ours, self._since = is_ours, since
        self._told: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def line(self, event: Object) -> str | None:
        """What to say of an event; None of one that has been told, or is not about these objects."""
        about = event.get("involvedObject") or {}
        name, reason = str(about.get("name", "")), str(event.get("reason", ""))
        message = " ".join(str(event.get("message", "")).split())
        if not self._is_ours(name) or _time(event) < self._since:  # of an earlier object of this name
            return None
        key = (name, reason, message)
        if key in self._told:
            return None
        self._told[key] = None
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        warning = "warning: " if event.get("type") == "Warning" else ""
        return f"{warning}{about.get('kind', '')} {name}: {reason}: {message}"


def _time(event: Object) -> str:
    """When it last happened; times of Kubernetes are UTC and sort as text to the second."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))  # fmt: skip
    return next((str(time)[:19] + "Z" for time in times if time), "9999")
