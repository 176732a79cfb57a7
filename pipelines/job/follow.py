"""Follows one job to its end: logs, events, progress, deadlines, and hints at what to do about a failure."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from pipelines.cluster.client import Object
from pipelines.cluster.logs import Console
from pipelines.cluster.pods import JobPods
from pipelines.cluster.watch import Change, Changes
from pipelines.job.backends import State
from pipelines.job.reconcile import Jobs
from pipelines.job.settings import Deadlines
from server.errors import UserError
from trainer.monitoring.console import counted

_DRAIN_INTERVALS = 6  # for logs and statuses that come after the end of the job
_SHOWN_LINES, _SHOWN_EVENTS = 10, 5
_STEPS = re.compile(r"train: epoch (\d+)/(\d+): ([\d,]+)/([\d,]+) steps .*?([\d.,]+) steps/s")
_OURS = re.compile(r"(train|preprocess|evaluate|export)(:| )")


_HINTS = (
    (r"OOMKilled|exit code 137\b",
     "out of memory: give more with --memory, or train with a smaller --batch-size and more --accumulation-steps"),
    (r"CUDA out of memory|OutOfMemoryError",
     "the GPU is out of memory: a smaller --batch-size with more --accumulation-steps, a shorter --max-length, or --precision bf16"),
    (r"ImagePullBackOff|ErrImagePull|InvalidImageName|Failed to pull image",
     "the image cannot be pulled: check its name and tag, that the nodes reach the registry, and --image-pull-secrets"),
    (r"Insufficient|FailedScheduling|Unschedulable|didn't match|untolerated taint",
     "no node fits: ask for less (--gpus, --cpu, --memory, --nodes), allow more nodes (--node-selector, --tolerations), or free some"),
    (r"exceeded quota",
     "the namespace's quota is used up: ask for less, or have the quota raised"),
    (r"violates PodSecurity",
     "Pod Security refuses the pods: under `restricted` use --elastic, whose pods get no init container"),
    (r"Preempt|preempted|Evicted|DeletionByTaintManager|EvictionByEvictionAPI|TerminationByKubelet|NodeLost|Shutdown",
     "pods were preempted or evicted: start again, training resumes from its last checkpoint; a --priority-class makes it rarer"),
    (r"(?i)nccl.*(timeout|timed out|abort|error)|Watchdog caught collective|ncclSystemError|ncclRemoteError",
     "the GPUs lost each other (NCCL): see which rank ended first; check that a network policy lets the pods of a job talk on all ports, and NCCL_SOCKET_IFNAME"),
    (r"(?i)gloo.*(timed? ?out|connect|closed)|Connection closed by peer|Connection reset by peer",
     "the processes lost each other: see which rank ended first; a network policy has to let the pods of a job talk on all ports"),
    (r"RendezvousConnectionError|RendezvousTimeoutError|Name or service not known|Temporary failure in name resolution",
     "the pods did not find each other: check DNS and that a network policy allows it between the pods of a job"),
    (r"bus error|Bus error|exit code 135\b|SIGBUS",
     "shared memory was too small: mount a memory-backed /dev/shm, as manifests/base does"),
    (r"Permission denied|Read-only file system|\[Errno (13|30)\]",
     "the volume cannot be written: it has to be writable for group 0, see fsGroup in manifests/base"),
    (r"No space left on device|\[Errno 28\]",
     "the volume is full: remove old runs, or make the claim larger"),
    (r"is no dataset folder|has no dataset\.json|was made with another tokenizer|unknown class|cannot be used",
     "the data is at fault: correct it as the line above says, and run preprocess again"),
    (r"was made with .* now it is",
     "the checkpoint was made with other settings: set them again, or start over with --resume never"),
    (r"FailedMount|FailedAttachVolume|Multi-Attach",
     "a volume cannot be mounted: a claim that is not ReadWriteMany serves the pods of one node only"),
    (r"CreateContainerConfigError|CreateContainerError|RunContainerError",
     "the container cannot be started: a secret or config map that it names may be missing, or the command is not in the image"),
)  # fmt: skip


def hints(text: Iterable[str]) -> list[str]:
    """Returns what to do about a failure, in the order of the table above."""
    joined = "\n".join(text)
    return [hint for pattern, hint in _HINTS if re.search(pattern, joined)]


class JobFailedError(UserError):
    """The job ended without success; the message names the reason, the ranks, and what to do."""


class DeadlineError(UserError):
    """A deadline of ours has passed."""


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
    """Prints what happens to a job while it runs; a context, which ends its threads."""

    def __init__(self, jobs: Jobs, job: Object, deadlines: Deadlines, console: Console) -> None:
        self._cluster, self._kind, self._job = jobs.cluster, jobs.kind, job
        self._deadlines, self._console = deadlines, console
        self.name: str = job["metadata"]["name"]
        self._count = jobs.kind.pods(job)
        self._progress = Progress()
        self.pods = JobPods(
            jobs.cluster, console, rank=jobs.kind.rank, container=jobs.kind.container, on_line=self._progress.on_line
        )
        self._changes = Changes(
            jobs.cluster, "job", self.name, path=jobs.path(), pods=jobs.kind.selector(self.name),
            owns=lambda name: jobs.kind.owns(name, job=self.name), since=job["metadata"].get("creationTimestamp") or "",
            on_event=lambda line: console.print("event", line), known=job,
        )  # fmt: skip
        self._begun = time.monotonic() - _age_seconds(job)
        self._waiting_since: float | None = time.monotonic()
        self._printed_at, self._printed = time.monotonic(), ""

    def __enter__(self) -> Self:
        if self._state.suspended:  # as Kueue makes it before we see it
            self._print_suspended()
        self._changes.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._changes.stop()
        self.pods.stop()

    @property
    def _state(self) -> State:
        return self._kind.state(self._job)

    def until_succeeded(self) -> None:
        """Returns when the job has succeeded; raises JobFailedError or DeadlineError otherwise."""
        while not self._state.is_final:
            self._take()
            self._check_deadlines()
            self._heartbeat()
        self._drain()
        if self._state.phase == "failed":
            raise JobFailedError(self._diagnosis())

    def _take(self) -> None:
        """Takes the next change, or none within a tick."""
        change = self._changes.next_change()
        if change is None:
            return
        if change.what == "pod":
            if _owner(change.item) in (None, self._job["metadata"]["uid"]):
                self.pods.update(change.item, gone=change.gone)
        elif change.item["metadata"]["uid"] == self._job["metadata"]["uid"]:
            self._take_job(change)

    def _take_job(self, change: Change) -> None:
        if change.gone or change.item["metadata"].get("deletionTimestamp"):
            raise JobFailedError(f"job {self.name} was deleted by someone else")
        before = self._state
        self._job = change.item
        if self._state.suspended and not before.suspended:
            self._print_suspended()
        if before.suspended and not self._state.suspended:
            self._console.print("launch", f"job {self.name} is admitted")

    def _print_suspended(self) -> None:
        self._console.print("launch", f"job {self.name} is suspended: its queue starts it when there is room")

    def _waiting_reason(self) -> str:
        if self._state.suspended:
            return "its queue has not started it"
        return self.pods.waiting() or "its pods are not there yet"

    def _check_deadlines(self) -> None:
        now, ends = time.monotonic(), self._deadlines
        answering_since = self._cluster.answering_since
        if self.pods.running >= self._count.needed:
            if self._waiting_since is not None:
                self._progress.restart()
                self._console.print("launch", f"{self.pods.running} of {self._count.expected} pods run")
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        if answering_since is None:
            return  # the job may progress while we do not see it
        self._check("to run", ends.run_minutes, self._begun, "it took too long")
        if self._waiting_since is not None:
            since = max(self._waiting_since, answering_since)
            self._check("to be scheduled", ends.schedule_minutes, since, self._waiting_reason())
        else:
            since, training = max(self._progress.moved, answering_since), self._progress.training
            last = f"the last was {training}" if training else "there was none yet"
            self._check("without progress", ends.progress_minutes, since, last)

    def _check(self, what: str, minutes: float | None, since: float, why: str) -> None:
        if minutes is not None and time.monotonic() - since > minutes * 60:
            words = [
                f"job {self.name}: the deadline of {minutes:g} min {what} has passed: {why}",
                *list(self._changes.events)[-3:],
            ]
            raise DeadlineError("\n".join([*words, *_hint_lines(words)]))

    def _heartbeat(self) -> None:
        """Prints a line on the state from time to time, and none twice."""
        now = time.monotonic()
        if now - self._printed_at < self._cluster.polling.heartbeat_seconds:
            return
        self._printed_at = now
        if self._waiting_since is not None:
            line = f"{self.pods.running} of {self._count.expected} pods run; {self._waiting_reason()}"
        else:
            line = str(self._progress.training or "the pods run; no progress yet")
        if line != self._printed:
            self._printed = line
            self._console.print("launch", line)

    def _drain(self) -> None:
        """Takes statuses of pods and ends of logs, which may come after the job's own end."""
        pause = self._cluster.polling.interval_seconds
        end = time.monotonic() + pause * _DRAIN_INTERVALS
        settled = time.monotonic() + pause
        while time.monotonic() < end:
            self._take()
            if time.monotonic() > settled and self.pods.logs_ended:
                return

    def _diagnosis(self) -> str:
        lines = [f"job {self.name} failed: {self._state.reason}: {self._state.message}"]
        for pod in sorted(self.pods.by_name.values(), key=lambda pod: pod.name):
            if not pod.failed:
                continue
            ends = "; then ".join(dict.fromkeys(str(end) for end in pod.terminations))
            lines.append(f"{pod.name}: {ends} ({counted(pod.restarts, 'restart')}); its last lines:")
            lines += [f"    {line}" for line in list(pod.last_lines)[-_SHOWN_LINES:]]
        if not any(pod.terminations for pod in self.pods.by_name.values()):
            lines += list(self._changes.events)[-_SHOWN_EVENTS:]
        return "\n".join([*lines, *_hint_lines([*lines, *self._changes.events])])


def _hint_lines(text: list[str]) -> list[str]:
    return [f"hint: {hint}" for hint in hints(text)]


def _owner(pod: Object) -> str | None:
    owners = pod["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)


def _age_seconds(job: Object) -> float:
    """Returns the time since its creation; never negative, for clocks differ."""
    made = job["metadata"].get("creationTimestamp")
    return max(0.0, time.time() - datetime.fromisoformat(made).timestamp()) if made else 0.0
