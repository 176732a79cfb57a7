"""Events of a job, its pods and its place in Kueue's queue, each told once."""

from collections import OrderedDict

from pipelines.job.kind import is_of_job
from pipelines.job.settings import Object

_REMEMBERED = 5_000


class Events:
    """Knows which events have been told: Kubernetes counts an event that happens again, and sends it anew each time."""

    def __init__(self, job: Object) -> None:
        self._job: str = job["metadata"]["name"]
        self._since: str = job["metadata"].get("creationTimestamp") or ""
        self._told: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def line(self, event: Object) -> str | None:
        """What to say of an event; None of one that has been told, or is not of this job."""
        about = event.get("involvedObject") or {}
        name, reason = str(about.get("name", "")), str(event.get("reason", ""))
        message = " ".join(str(event.get("message", "")).split())
        if not is_of_job(name, job=self._job) or _time(event) < self._since:  # of an earlier job of this name
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
