"""The deploy step on a cluster: upgrades the release to a run's model, verifies it, and rolls back when that fails."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipelines import data_folder
from pipelines.cluster.client import Cluster, Object, connect
from pipelines.cluster.logs import Console
from pipelines.deploy.helm import DryRun, Helm, HelmError, Revision
from pipelines.deploy.preflight import find_api_key, preflight
from pipelines.deploy.rollout import Rollout
from pipelines.deploy.settings import DeployConfig, model_values, values_files
from pipelines.deploy.verify import expected_labels, record_served, verify
from pipelines.run_folder import RunFolder
from pipelines.signals import defer_sigterm, exit_on_sigterm
from server.errors import UserError
from server.http.client import Client

_QUICK_SECONDS = 20  # of the 30 that a pod has after SIGTERM
_RETURN_SECONDS = 300  # for the earlier pods
_SERVICE_SECONDS = 120  # for the Service to learn of the new pods, and for each request to be answered


def deploy_on_cluster(run: RunFolder, config: DeployConfig, *, cluster: Cluster | None = None) -> dict[str, Any]:
    """Serves the model of a run by the release, and returns when the new server gives the labels that evaluate gave.

    Whatever ends it otherwise, SIGTERM included, the release is rolled back to the revision that was served before, or
    removed if there was none, and UserError has the reason and a diagnosis. A later call recovers from one that was killed.
    """
    cluster = cluster or connect(config.namespace or None)
    with ExitStack() as stack:
        stack.enter_context(exit_on_sigterm())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return _Deployment(run, config, cluster, folder).run()


class _Deployment:
    """One attempt to serve the model of a run."""

    def __init__(self, run: RunFolder, config: DeployConfig, cluster: Cluster, scratch: Path) -> None:
        """Checks all that can be wrong before anything changes."""
        self._run, self._config, self._cluster, self._console = run, config, cluster, Console()
        chart = Path(config.chart) if config.chart else data_folder("helm/serving")
        if not (chart / "Chart.yaml").is_file():
            raise UserError(f"chart {chart}: is no folder with a Chart.yaml")
        self._helm = Helm(config.helm, release=config.release, namespace=cluster.namespace, chart=chart, console=self._console)  # fmt: skip
        values = model_values(run.model, version=run.name, config=config)
        self._sha256: str = values["model"]["sha256"]
        self._files = values_files(config, values, scratch)
        self._keep, self._seconds = config.existing_values == "keep", config.timeout_minutes * 60
        self._expected = expected_labels(run, config.verify_texts)
        self._history: list[Revision] = []
        planned = preflight(cluster, config, self._helm, self._dry_run)
        self._name = _server_object(planned.objects, "Deployment")["metadata"]["name"]
        service = _server_object(planned.objects, "Service")
        address = f"http://{service['metadata']['name']}.{cluster.namespace}.svc:{service['spec']['ports'][0]['port']}"
        self._url, self._key = config.url or address, find_api_key(config, planned.values, cluster)

    def run(self) -> dict[str, Any]:
        """Upgrades and verifies; on any failure diagnoses, rolls back and raises one error."""
        previous = self._previous()
        self._announce(previous)
        with Rollout(self._cluster, self._name, release=self._helm.release, console=self._console) as rollout:
            try:
                self._helm.upgrade(
                    self._files, keep=self._keep, description=f"model of run {self._run.name}",
                    seconds=self._seconds, on_tick=rollout.poll,
                )  # fmt: skip
                outcome = self._verify()
                revision = self._helm.history()[-1].number
                where = f"{self._cluster.namespace}/{self._helm.release}"
                record_served(self._run, sha256=self._sha256, release=where, revision=revision)
            except UserError as error:
                diagnosis = rollout.diagnosis()
                result = self._go_back(previous, rollout, wait=True)
                raise UserError("\n".join(filter(None, [f"{error}; {result}", diagnosis]))) from error
            except BaseException:  # SIGTERM, which leaves no time to wait, or a fault of ours
                self._go_back(previous, rollout, wait=False)
                raise
        self._console.print("deploy", f"the server agrees with evaluate on {outcome['agreement']:.0%} of {outcome['texts']} texts; {self._run.name} is served by {self._helm.release}, revision {revision}")  # fmt: skip
        return {
            **outcome, "namespace": self._cluster.namespace, "release": self._helm.release, "revision": revision,
            "url": self._url, "sha256": self._sha256,
        }  # fmt: skip

    def _dry_run(self) -> DryRun:
        """Renders the upgrade; recovers first what a killed attempt left, for Helm refuses to upgrade it."""
        self._history = self._recover_pending()
        return self._helm.dry_run(self._files, keep=self._keep)

    def _verify(self) -> dict[str, Any]:
        patience = min(_SERVICE_SECONDS, self._cluster.polling.timeout_seconds)
        with Client(
            self._url, api_key=self._key, patience_seconds=patience, busy_seconds=patience, new_connections=True, proxies=False
        ) as client:  # fmt: skip
            client.wait_for_model(self._sha256, timeout_seconds=patience)
            return verify(client, self._expected, min_agreement=self._config.min_agreement)

    def _recover_pending(self) -> list[Revision]:
        """Returns the history once no operation is in progress: waits for another's, and undoes one that was killed."""
        waiting = False
        while (history := self._helm.history()) and history[-1].is_pending:
            last = history[-1]
            if self._helm.model_sha256(last.number) == self._sha256 or last.age_seconds > self._seconds:
                self._recover(history)
                return self._helm.history()
            if not waiting:
                self._console.print("deploy", f"revision {last.number} of {self._helm.release} is {last.status} by another: waiting for its end")  # fmt: skip
                waiting = True
            time.sleep(self._cluster.polling.interval_seconds)
        return history

    def _recover(self, history: Sequence[Revision]) -> None:
        last = history[-1]
        served = next((revision.number for revision in reversed(history) if revision.was_served), None)
        back = served if last.status != "uninstalling" else None
        how = f"rolling back to revision {back}" if back else "removing the release"
        self._console.print("deploy", f"revision {last.number} of {self._helm.release} was left {last.status} by an attempt that was killed: {how}")  # fmt: skip
        if back:
            self._helm.rollback(back, seconds=_QUICK_SECONDS)
        else:
            self._helm.uninstall(seconds=_QUICK_SECONDS)

    def _previous(self) -> int | None:
        """Returns the last revision that was served, but not one with this very model that was never verified."""
        verified = self._run.served.get("sha256") == self._sha256
        for revision in reversed(self._history):
            if revision.was_served and (verified or self._helm.model_sha256(revision.number) != self._sha256):
                return revision.number
        return None

    def _go_back(self, previous: int | None, rollout: Rollout, *, wait: bool) -> str:
        """Rolls back and waits for the earlier pods, if for anything; returns the result in words."""
        try:
            if result := self._roll_back(previous):
                return result
            if wait:
                rollout.wait_until_complete(min(self._seconds, _RETURN_SECONDS))
        except UserError as error:
            result = f"the rollback failed: {error}"
            self._console.print("deploy", result)
            return result
        return f"revision {previous} is served again"

    def _roll_back(self, previous: int | None) -> str:
        """Rolls the release back without waiting for its pods; returns the result when no revision gets new pods. SIGTERM waits for it."""
        with defer_sigterm():
            now = self._helm.history()
            if not now or (self._history and now[-1].number <= self._history[-1].number):
                return f"release {self._helm.release} is unchanged"
            if self._helm.model_sha256(now[-1].number) != self._sha256:
                return f"release {self._helm.release} has been changed by another meanwhile and is left alone"
            by_hand = f"helm rollback {self._helm.release} {previous}" if previous else f"helm uninstall {self._helm.release}"  # fmt: skip
            try:
                if previous:
                    self._helm.rollback(previous, seconds=_QUICK_SECONDS)
                else:
                    self._helm.uninstall(seconds=_QUICK_SECONDS)
            except HelmError as error:
                raise UserError(f"{error}; run {by_hand} --namespace {self._helm.namespace}") from error
            done = f"is rolled back to revision {previous}" if previous else "is removed again: there was none before"
            self._console.print("deploy", f"release {self._helm.release} {done}")
            return "" if previous else "the release is removed"

    def _announce(self, previous: int | None) -> None:
        now = f"revision {previous} is served now" if previous else "a first install"
        self._console.print("deploy", f"helm {self._helm.version()}: release {self._helm.release} in namespace {self._cluster.namespace} gets the model of run {self._run.name}; {now}; started {time.strftime('%H:%M:%S')}")  # fmt: skip


def _server_object(objects: Sequence[Object], kind: str) -> Object:
    """Returns the Deployment or Service of the server."""
    return next(
        item
        for item in objects
        if item["kind"] == kind and item["metadata"]["labels"].get("app.kubernetes.io/component") == "server"
    )
