"""The way back: which revision was served before, how a release is brought back to it, and what a killed attempt left."""

import time
from collections.abc import Sequence

from pipelines.cluster.logs import Console
from pipelines.deploy.helm import Helm, HelmError, Revision
from pipelines.deploy.values import at
from pipelines.signals import defer_sigterm
from server.errors import UserError

_QUICK_SECONDS = 20  # of the 30 that a pod has after SIGTERM


def settle(helm: Helm, console: Console, *, sha256: str, seconds: float, interval: float) -> list[Revision]:
    """The history of the release when no operation is in progress: another's is waited for, a dead one's is undone."""
    told = False
    while (history := helm.history()) and history[-1].is_pending:
        last = history[-1]
        if _sha256(helm, last) == sha256 or last.age_seconds > seconds:
            _mend(helm, console, history)
            return helm.history()
        if not told:
            console.print("deploy", f"revision {last.number} of {helm.release} is {last.status}, another's: waiting for its end")  # fmt: skip
            told = True
        time.sleep(interval)
    return history


def _mend(helm: Helm, console: Console, history: Sequence[Revision]) -> None:
    last = history[-1]
    good = next((revision for revision in reversed(history) if revision.was_served), None)
    how = f"going back to revision {good.number}" if good and last.status != "uninstalling" else "removing it"
    console.print("deploy", f"revision {last.number} of {helm.release} was left {last.status} by an attempt that was killed: {how}")  # fmt: skip
    if good and last.status != "uninstalling":
        helm.rollback(good.number, seconds=_QUICK_SECONDS)
    else:
        helm.uninstall(seconds=_QUICK_SECONDS)


def earlier(helm: Helm, history: Sequence[Revision], *, sha256: str, served: str) -> int | None:
    """The revision to go back to: the last one served, but not one with this very model that has never been found good."""
    for revision in reversed(history):
        if revision.was_served and (sha256 == served or _sha256(helm, revision) != sha256):
            return revision.number
    return None


def undo(helm: Helm, console: Console, history: Sequence[Revision], before: int | None, *, sha256: str) -> bool:
    """Bring the release back, if it is still we who changed it last, without waiting for its pods; whether it now goes back.

    UserError when it cannot be brought back, with the command that does it. SIGTERM waits for it.
    """
    with defer_sigterm():
        now = helm.history()
        if not now or (history and now[-1].number <= history[-1].number):
            console.print("deploy", f"release {helm.release} is as it was: Helm changed nothing")
            return False
        if _sha256(helm, now[-1]) != sha256:
            console.print("deploy", f"release {helm.release} has been changed by another meanwhile: left alone")
            return False
        try:
            _bring_back(helm, console, before)
        except HelmError as error:
            by_hand = f"helm rollback {helm.release} {before}" if before else f"helm uninstall {helm.release}"
            raise UserError(f"{error}; run {by_hand} --namespace {helm.namespace}") from error
        return before is not None


def _bring_back(helm: Helm, console: Console, before: int | None) -> None:
    if before is None:
        helm.uninstall(seconds=_QUICK_SECONDS)
        console.print("deploy", f"release {helm.release} is removed again: there was none before")
    else:
        helm.rollback(before, seconds=_QUICK_SECONDS)
        console.print("deploy", f"release {helm.release} goes back to revision {before}")


def _sha256(helm: Helm, revision: Revision) -> str:
    """Of the model that a revision serves; empty where it is not known."""
    try:
        return str(at(helm.values(revision.number), "model.sha256") or "")
    except HelmError:
        return ""  # a revision that was pruned, or that this Helm cannot read, is not ours
