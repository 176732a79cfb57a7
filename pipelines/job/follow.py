"""Follow one job to its end: logs, events, progress, deadlines."""

import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from pipelines.cluster.client import Cluster
from pipelines.cluster.logs import Console
from pipelines.cluster.pods import JobPods
from pipelines.cluster.watch import Change, Changes
from pipelines.job.backends import pytorchjob as kind
from pipelines.job.hints import hints
from pipelines.job.settings import Deadlines, Object
from server.errors import UserError

_LAST_WORDS_INTERVALS = 6  # for logs and statuses that come after the end of the job
_SHOWN_LINES = 10
_STEPS = re.compile(r"train: epoch (\d+)/(\d+): ([\d,]+)/([\d,]+) steps .*?([\d.,]+) steps/s")
_OURS = re.compile(r"(train|preprocess|evaluate|export)(:| )")


class JobFailedError(UserError):
    """The job ended without success: why, which ranks, what to do."""


class DeadlineError(UserError):
    """A deadline of ours has passed: which."""


@dataclass(frozen=True)
class Training:
    """The progress of training, read from the trainer's own line."""

    epoch: int
    epochs: int
    step: int
    steps: int
    steps_per_second: float

    @property
    def share(self) -> float:
        """The part of all steps that is done, from 0 to 1."""
        return (self.epoch - 1 + self.step / self.steps) / self.epochs

    @property
    def seconds_left(self) -> float:
        return (1 - self.share) * self.epochs * self.steps / max(self.steps_per_second, 1e-9)

    def __str__(self) -> str:
        left = round(self.seconds_left)
        return f"epoch {self.epoch} of {self.epochs}, {self.share:.0%} of training, ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


class Progress:
    """The time of the last progress, and the state of training."""

    def __init__(self) -> None:
        self.training: Training | None = None
        self.moved = time.monotonic()
        self._last = ""

    def on_line(self, line: str) -> None:
        """Reads a line of a rank; a repeated one, or one that is not the trainer's, is no progress."""
        if not _OURS.match(line) or line == self._last:
            return
        self._last, self.moved = line, time.monotonic()
        if found := _STEPS.match(line):
            epoch, epochs, step, steps = (int(number.replace(",", "")) for number in found.groups()[:4])
            self.training = Training(epoch, epochs, step, max(steps, 1), float(found[5].replace(",", "")))

    def restart(self) -> None:
        self.moved = time.monotonic()


class Follower:
    """What is known of a job while it runs; a context, which ends its threads."""

    def __init__(self, cluster: Cluster, job: Object, deadlines: Deadlines, console: Console) -> None:
        self._cluster, self._job, self._deadlines, self._console = cluster, job, deadlines, console
        self.name: str = job["metadata"]["name"]
        self._expected, self._needed = kind.pod_count(kind.read(job)), kind.pods_needed(kind.read(job))
        self._progress = Progress()
        self.ranks = JobPods(
            cluster, console, rank=kind.rank_name, container=kind.CONTAINER, on_line=self._progress.on_line
        )
        self._changes = Changes(
            cluster,
            "job",
            self.name,
            path=cluster.path(kind.API_VERSION, kind.PLURAL),
            pods=f"{kind.JOB_LABEL}={self.name}",
            owns=lambda name: kind.is_of_job(name, job=self.name),
            since=job["metadata"].get("creationTimestamp") or "",
            on_event=lambda line: console.print("event", line),
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
        change = self._changes.next_change()
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
            self._console.print("launch", f"job {self.name} is admitted")

    def _say_suspended(self) -> None:
        self._console.print("launch", f"job {self.name} is suspended: its queue starts it when there is room")

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
                self._console.print("launch", f"{self.ranks.running} of {self._expected} pods run")
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
                *list(self._changes.events)[-3:],
            ]
            raise DeadlineError("\n".join([*words, *self._hints(words)]))

    def _tell_how_it_stands(self) -> None:
        """A line from time to time, and none that says the same twice."""
        now = time.monotonic()
        if now - self._spoken < self._cluster.polling.heartbeat_seconds:
            return
        self._spoken = now
        if self._waiting_since is not None:
            line = f"{self.ranks.running} of {self._expected} pods run; {self._waits_for()}"
        else:
            line = str(self._progress.training or "the pods run; no progress told yet")
        if line != self._said:
            self._said = line
            self._console.print("launch", line)

    def _hear_last_words(self) -> None:
        """Statuses of pods and ends of logs may come after the job's own."""
        pause = self._cluster.polling.interval_seconds
        end = time.monotonic() + pause * _LAST_WORDS_INTERVALS
        settled = time.monotonic() + pause
        while time.monotonic() < end:
            self._take()
            if time.monotonic() > settled and self.ranks.logs_ended:
                return

    def _why(self, state: kind.State) -> str:
        words = [f"job {self.name} failed: {state.reason}: {state.message}"]
        for rank in sorted(self.ranks.by_name.values(), key=lambda rank: rank.name):
            if not rank.failed:
                continue
            ends = "; then ".join(dict.fromkeys(str(end) for end in rank.terminations))
            words.append(f"{rank.name}: {ends} ({rank.restarts} restarts); its last lines:")
            words += [f"    {line}" for line in list(rank.last_lines)[-_SHOWN_LINES:]]
        if not any(rank.terminations for rank in self.ranks.by_name.values()):
            words += list(self._changes.events)[-5:]
        return "\n".join([*words, *self._hints([*words, *self._changes.events])])

    def _hints(self, words: list[str]) -> list[str]:
        return [f"hint: {hint}" for hint in hints(words)]


def _owner(pod: Object) -> str | None:
    owners = pod["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)


def _age_seconds(job: Object) -> float:
    """Since it was made; never negative, for clocks differ."""
    made = job["metadata"].get("creationTimestamp")
    return max(0.0, time.time() - datetime.fromisoformat(made).timestamp()) if made else 0.0
