"""Follow one job to its end: logs, events, progress, deadlines."""

import queue
import time
from datetime import datetime
from typing import Self

from pipelines.job import kind
from pipelines.job.cluster import Cluster
from pipelines.job.console import Console, Progress
from pipelines.job.events import Events
from pipelines.job.hints import hints
from pipelines.job.ranks import Ranks
from pipelines.job.settings import Deadlines, Object
from pipelines.job.watch import Change, Watch
from trainer.errors import UserError

_QUEUE = 1_000
_TICK_SECONDS = 0.5  # of our own clock; nothing is asked then
_LAST_WORDS_INTERVALS = 6  # for logs and statuses that come after the end of the job
_SHOWN_LINES = 10


class JobFailedError(UserError):
    """The job ended without success: why, which ranks, what to do."""


class DeadlineError(UserError):
    """A deadline of ours has passed: which."""


class Follower:
    """What is known of a job while it runs; a context, which ends its threads."""

    def __init__(self, cluster: Cluster, job: Object, deadlines: Deadlines, console: Console) -> None:
        self._cluster, self._job, self._deadlines, self._console = cluster, job, deadlines, console
        self.name: str = job["metadata"]["name"]
        self._expected = kind.pod_count(kind.read(job))
        self._progress = Progress()
        since = job["metadata"].get("creationTimestamp") or ""
        self._events = Events(lambda name: kind.is_of_job(name, job=self.name), since=since)
        self._recent: list[str] = []
        self.ranks = Ranks(cluster, console, self._progress.hear)
        self._changes: queue.Queue[Change] = queue.Queue(_QUEUE)
        jobs, pods, events = (
            cluster.path(group, plural)
            for group, plural in ((kind.API_VERSION, kind.PLURAL), ("v1", "pods"), ("v1", "events"))
        )
        self._watches = [
            Watch(cluster, "job", jobs, [("fieldSelector", f"metadata.name={self.name}")], self._changes),
            Watch(cluster, "pod", pods, [("labelSelector", f"{kind.JOB_LABEL}={self.name}")], self._changes),
            Watch(cluster, "event", events, [], self._changes),
        ]
        self._begun = time.monotonic() - _age_seconds(job)
        self._waiting_since: float | None = time.monotonic()
        self._spoken, self._said = time.monotonic(), ""

    def __enter__(self) -> Self:
        if kind.state(self._job).suspended:  # as Kueue makes it before we see it
            self._say_suspended()
        for watch in self._watches:
            watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for watch in self._watches:
            watch.stop()
        self.ranks.stop()

    def until_succeeded(self) -> None:
        """Returns when the job has succeeded; JobFailedError or DeadlineError otherwise."""
        while not (state := kind.state(self._job)).is_final:
            self._take()
            self._check_deadlines()
            self._tell_how_it_stands()
        self._hear_last_words()
        if state.phase == "failed":
            raise JobFailedError(self._why(state))

    def _take(self) -> None:
        """The next change, or none within a tick."""
        try:
            change = self._changes.get(timeout=min(_TICK_SECONDS, self._cluster.pace.interval_seconds))
        except queue.Empty:
            return
        if change.error:
            raise change.error
        if change.what == "event":
            if not change.gone and (line := self._events.line(change.item)):
                self._recent = [*self._recent[-20:], line]
                self._console.say("event", line)
        elif change.what == "pod":
            if _owner(change.item) in (None, self._job["metadata"]["uid"]):
                self.ranks.update(change.item, gone=change.gone)
        elif change.item["metadata"]["uid"] == self._job["metadata"]["uid"]:
            self._take_job(change)

    def _take_job(self, change: Change) -> None:
        if change.gone or change.item["metadata"].get("deletionTimestamp"):
            raise JobFailedError(f"job {self.name} was deleted, and not by us")
        before, now = kind.state(self._job), kind.state(change.item)
        self._job = change.item
        if now.suspended and not before.suspended:
            self._say_suspended()
        if before.suspended and not now.suspended:
            self._console.say("launch", f"job {self.name} is admitted")

    def _say_suspended(self) -> None:
        self._console.say("launch", f"job {self.name} is suspended: its queue starts it when there is room")

    def _waits_for(self) -> str:
        if kind.state(self._job).suspended:
            return "its queue has not started it"
        return self.ranks.waiting() or "its pods are not there yet"

    def _check_deadlines(self) -> None:
        now, ends = time.monotonic(), self._deadlines
        answering_since = self._cluster.answering_since
        if self.ranks.running >= self._expected:
            if self._waiting_since is not None:
                self._progress.restart()
                self._console.say("launch", f"{self._expected} of {self._expected} pods run")
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        if answering_since is None:
            return  # what we do not see may well be going on
        self._check("to run", ends.run_minutes, self._begun, "it took too long")
        if self._waiting_since is not None:
            since = max(self._waiting_since, answering_since)
            self._check("to be scheduled", ends.schedule_minutes, since, self._waits_for())
        else:
            since = max(self._progress.moved, answering_since)
            training = self._progress.training
            self._check(
                "without progress",
                ends.progress_minutes,
                since,
                f"the last was {training}" if training else "there was none yet",
            )

    def _check(self, what: str, minutes: float | None, since: float, why: str) -> None:
        if minutes is not None and time.monotonic() - since > minutes * 60:
            words = [f"job {self.name}: the deadline of {minutes:g} min {what} has passed: {why}", *self._recent[-3:]]
            raise DeadlineError("\n".join([*words, *self._hints(words)]))

    def _tell_how_it_stands(self) -> None:
        """A line from time to time, and none that says the same twice."""
        now = time.monotonic()
        if now - self._spoken < self._cluster.pace.heartbeat_seconds:
            return
        self._spoken = now
        if self._waiting_since is not None:
            line = f"{self.ranks.running} of {self._expected} pods run; {self._waits_for()}"
        else:
            line = str(self._progress.training or "the pods run; no progress told yet")
        if line != self._said:
            self._said = line
            self._console.say("launch", line)

    def _hear_last_words(self) -> None:
        """Statuses of pods and ends of logs may come after the job's own."""
        pause = self._cluster.pace.interval_seconds
        end = time.monotonic() + pause * _LAST_WORDS_INTERVALS
        settled = time.monotonic() + pause
        while time.monotonic() < end:
            self._take()
            if time.monotonic() > settled and self.ranks.logs_end:
                return

    def _why(self, state: kind.State) -> str:
        words = [f"job {self.name} failed: {state.reason}: {state.message}"]
        for rank in sorted(self.ranks.by_name.values(), key=lambda rank: rank.name):
            if not rank.failed:
                continue
            ends = "; then ".join(dict.fromkeys(str(end) for end in rank.ends))
            words.append(f"{rank.name}: {ends} ({rank.restarts} restarts); its last lines:")
            words += [f"    {line}" for line in list(rank.last_lines)[-_SHOWN_LINES:]]
        if not any(rank.ends for rank in self.ranks.by_name.values()):
            words += self._recent[-5:]
        return "\n".join([*words, *self._hints([*words, *self._recent])])

    def _hints(self, words: list[str]) -> list[str]:
        return [f"hint: {hint}" for hint in hints(words)]


def _owner(pod: Object) -> str | None:
    owners = pod["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)


def _age_seconds(job: Object) -> float:
    """Since it was made; never negative, for clocks differ."""
    made = job["metadata"].get("creationTimestamp")
    return max(0.0, time.time() - datetime.fromisoformat(made).timestamp()) if made else 0.0
