"""deploy on a cluster: the release of the server brought to a run's model, asked, and brought back when it fails."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import SecretStr

from pipelines import data_folder
from pipelines.cluster.client import Cluster, connect
from pipelines.cluster.logs import Console
from pipelines.deploy.helm import Helm, Revision
from pipelines.deploy.key import api_key
from pipelines.deploy.local import Questions, agreement_of, note_served, questions, served_now
from pipelines.deploy.preflight import preflight
from pipelines.deploy.rollout import Rollout
from pipelines.deploy.settings import DeployConfig
from pipelines.deploy.undo import earlier, settle, undo
from pipelines.deploy.values import at, merged, model_values, own_values
from pipelines.deploy.verify import Service
from pipelines.job.settings import Object
from pipelines.run_folder import RunFolder
from pipelines.signals import exit_on_sigterm
from server.errors import UserError

_GONE_SECONDS = 60  # for the last of the old pods
_RETURN_SECONDS = 300  # for the earlier ones
_SERVICE_SECONDS = 120  # for the Service to learn of the new pods, and for each request to be answered
_LAST_LOOKS = 10


class _FailedError(UserError):
    """Why the new model is not served, and what the pods said."""

    def __init__(self, reason: str, *, story: str) -> None:
        super().__init__(reason)
        self.story = story


class _Plan(NamedTuple):
    """What is to be served, how, and how it is asked."""

    helm: Helm
    console: Console
    values: Object
    server: str
    """Name of the Deployment and of the Service."""
    url: str
    key: SecretStr | None
    questions: Questions


def deploy_on_cluster(run: RunFolder, config: DeployConfig, *, cluster: Cluster | None = None) -> dict[str, Any]:
    """Serve the model of a run by the release, and return when the new server answers as evaluate did.

    Whatever ends it otherwise, SIGTERM included, the release goes back to the revision that was served before, or away if there was
    none, and UserError says why, with what the pods said. Called again, it first mends what an attempt that was killed left.
    """
    console = Console()
    cluster = cluster or connect(config.namespace or None)
    with exit_on_sigterm():
        plan = _plan(run, config, cluster, console)
        seconds = config.timeout_minutes * 60
        sha256 = at(plan.values, "model.sha256")
        history = settle(plan.helm, console, sha256=sha256, seconds=seconds, interval=cluster.polling.interval_seconds)
        before = earlier(plan.helm, history, sha256=sha256, served=str(served_now(run).get("sha256", "")))
        console.print("deploy", _told(run, plan, before))
        with Rollout(cluster, plan.server, release=config.release, console=console) as rollout:
            try:
                agreement, revision = _attempt(run, plan, rollout, config, cluster)
            except BaseException as error:
                limit = min(seconds, _RETURN_SECONDS) if isinstance(error, _FailedError) else 0
                back = _go_back(plan, rollout, history, before, wait_seconds=limit)
                if not isinstance(error, _FailedError):
                    raise
                raise UserError("\n".join(filter(None, [f"{error}; {back}", error.story]))) from error
    asked = len(plan.questions.texts)
    console.print("deploy", f"the server agrees with evaluate on {agreement:.0%} of {asked} texts; {run.name} is served by {config.release}, revision {revision}")  # fmt: skip
    return {"agreement": agreement, "texts": asked, "namespace": cluster.namespace, "release": config.release, "revision": revision, "url": plan.url, "sha256": sha256}  # fmt: skip


def _attempt(
    run: RunFolder, plan: _Plan, rollout: Rollout, config: DeployConfig, cluster: Cluster
) -> tuple[float, int]:
    """Roll the model out, ask it, and let it count as served: the agreement, and the revision."""
    seconds = config.timeout_minutes * 60
    end = time.monotonic() + seconds
    try:
        with _file(plan.values) as file:
            plan.helm.upgrade(file, description=f"model of run {run.name}", seconds=seconds, meanwhile=rollout.look)
        rollout.until_complete(max(end - time.monotonic(), min(seconds, _GONE_SECONDS)))
        agreement = _ask(plan, config, patience_seconds=min(_SERVICE_SECONDS, cluster.polling.timeout_seconds))
        revision = plan.helm.history()[-1].number
    except UserError as error:
        raise _FailedError(str(error), story=_story(rollout)) from error
    sha256 = at(plan.values, "model.sha256")
    note_served(run, sha256=sha256, release=f"{cluster.namespace}/{config.release}", revision=revision)
    return agreement, revision


def _go_back(plan: _Plan, rollout: Rollout, history: list[Revision], before: int | None, *, wait_seconds: float) -> str:
    """Undo what was done and wait for the earlier pods, if for anything; what came of it, in words."""
    try:
        if not undo(plan.helm, plan.console, history, before, sha256=at(plan.values, "model.sha256")):
            return "nothing of it is left" if before is None else "what was served before still is"
        if wait_seconds:
            rollout.until_complete(wait_seconds)
    except UserError as error:
        said = f"going back to what was served before did not succeed: {error}"
        plan.console.print("deploy", said)
        return said
    return f"revision {before} is served again"


def _plan(run: RunFolder, config: DeployConfig, cluster: Cluster, console: Console) -> _Plan:
    """All that can be wrong before anything changes."""
    chart = Path(config.chart) if config.chart else data_folder("helm/serving")
    if not (chart / "Chart.yaml").is_file():
        raise UserError(f"chart {chart}: is no folder with a Chart.yaml")
    helm = Helm(config.helm, release=config.release, namespace=cluster.namespace, chart=chart, console=console)
    ours = merged(own_values(config), model_values(run, config))
    asked = questions(run, config.texts)
    values: Object = {}

    def render() -> list[Object]:
        values.update(merged(_existing(helm) if config.existing_values == "keep" else {}, ours))
        with _file(values) as file:
            return helm.render(file)

    objects = preflight(cluster, config, render)
    server = _server(objects, "Deployment")["metadata"]["name"]
    service = _server(objects, "Service")
    address = f"http://{service['metadata']['name']}.{cluster.namespace}.svc:{service['spec']['ports'][0]['port']}"
    return _Plan(helm, console, values, server, config.url or address, api_key(config, values, cluster), asked)


def _existing(helm: Helm) -> Object:
    """The values of the release as it is served now."""
    served = [revision for revision in helm.history() if revision.status == "deployed"]
    return helm.values(served[-1].number) if served else {}


def _server(objects: list[Object], kind: str) -> Object:
    return next(
        item
        for item in objects
        if item["kind"] == kind and item["metadata"]["labels"].get("app.kubernetes.io/component") == "server"
    )


@contextmanager
def _file(values: Object) -> Iterator[Path]:
    """A file with these values that only we can read, for as long as Helm reads it."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(values, file)
        file.flush()
        yield Path(file.name)


def _ask(plan: _Plan, config: DeployConfig, *, patience_seconds: float) -> float:
    """The share of the texts to which the Service gives evaluate's label; UserError when it is too small."""
    service = Service(plan.url, key=plan.key, patience_seconds=patience_seconds)
    health = service.until_it_has(at(plan.values, "model.sha256"))
    found = service.labels(plan.questions.texts, health)
    return agreement_of(found, plan.questions.labels, at_least=config.agreement)


def _story(rollout: Rollout) -> str:
    """What the pods said, with what came a moment ago."""
    try:
        for _ in range(_LAST_LOOKS):
            rollout.look()
        return rollout.story()
    except UserError as error:
        return f"  (the pods cannot be asked: {error})"


def _told(run: RunFolder, plan: _Plan, before: int | None) -> str:
    now = f"revision {before} is served now" if before else "a first install"
    return f"helm {plan.helm.version()}: release {plan.helm.release} in namespace {plan.helm.namespace} gets the model of run {run.name}; {now}; started {time.strftime('%H:%M:%S')}"
