"""Follow one job to its end: logs, events, progress, deadlines."""

import time
from datetime import datetime
from typing import Self

from pipelines.cluster.changes import Changes
from pipelines.cluster.client import Cluster
from pipelines.cluster.console import Console, Progress
from pipelines.cluster.pods import Ranks
from pipelines.cluster.watch import Change
from pipelines.job.backends import pytorchjob as kind
from pipelines.job.hints import hints
from pipelines.job.settings import Deadlines, Object
from server.errors import UserError

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
        self._expected, self._needed = kind.pod_count(kind.read(job)), kind.pods_needed(kind.read(job))
        self._progress = Progress()
        self.ranks = Ranks(cluster, console, self._progress.hear)
        self._changes = Changes(
            cluster,
            "job",
            self.name,
            path=cluster.path(kind.API_VERSION, kind.PLURAL),
            pods=f"{kind.JOB_LABEL}={self.name}",
            about=lambda name: kind.is_of_job(name, job=self.name),
            since=job["metadata"].get("creationTimestamp") or "",
            console=console,
        )
        self._begun = time.monotonic() - _age_seconds(job)
        self._waiting_since: float | None = time.monotonic()
        self._spoken, self._said = time.monotonic(), ""

    def __enter__(self) -> Self:
        if kind.state(self._job).suspended:  # as Kueue makes it before we see it
            self._say_suspended()
        self._changes.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._changes.stop()
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
        change = self._changes.take()
        if change is None:
            return
        if change.what == "pod":
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
        if self.ranks.running >= self._needed:
            if self._waiting_since is not None:
                self._progress.restart()
                self._console.say("launch", f"{self.ranks.running} of {self._expected} pods run")
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
            words = [
                f"job {self.name}: the deadline of {minutes:g} min {what} has passed: {why}",
                *list(self._changes.told)[-3:],
            ]
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
            words += list(self._changes.told)[-5:]
        return "\n".join([*words, *self._hints([*words, *self._changes.told])])

    def _hints(self, words: list[str]) -> list[str]:
        return [f"hint: {hint}" for hint in hints(words)]


def _owner(pod: Object) -> str | None:
    owners = pod["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)


def _age_seconds(job: Object) -> float:
    """Since it was made; never negative, for clocks differ."""
    made = job["metadata"].get("creationTimestamp")
    return max(0.0, time.time() - datetime.fromisoformat(made).timestamp()) if made else 0.0
