"""A Kubeflow Pipelines endpoint: our pipeline uploaded, run or scheduled, and a run followed to its end."""

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from hashlib import sha256
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from pipelines.run_folder import STEPS
from server.cli import Environment
from server.errors import UserError
from trainer.monitoring.console import print0, quiet_logs

if TYPE_CHECKING:
    import kfp_server_api

_ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
_PIPELINE = "distrinews"
_POLL_SECONDS = 10.0
_PATIENCE_SECONDS = 900.0
_TRANSIENT = {408, 429, 500, 502, 503, 504}


class Access(Environment):
    """Address and credentials of the endpoint, from the environment alone: neither belongs into a command's history."""

    model_config = SettingsConfigDict(env_prefix="KFP_")

    host: str = ""
    """URL of the endpoint; empty to find it through the kubeconfig."""
    token: SecretStr | None = None
    """Bearer token."""
    cookies: SecretStr | None = None
    """Cookies of a session, as a browser sends them."""
    ca_file: str | None = None
    """Certificate of the authority that signed the endpoint's."""


class PipelinesClient:
    """Talks to one Kubeflow Pipelines endpoint; each of its faults is a UserError of one line."""

    def __init__(self, access: Access, *, namespace: str | None, poll_seconds: float = _POLL_SECONDS) -> None:
        from kfp.client import Client

        self._where, self._namespace, self._poll_seconds = access.host or "the cluster", namespace, poll_seconds
        with self._api_errors(), warnings.catch_warnings(), redirect_stdout(StringIO()):  # it prints about kubeconfig
            warnings.simplefilter("ignore", FutureWarning)  # of which servers the client supports
            self._client = Client(
                host=access.host or None,
                existing_token=access.token and access.token.get_secret_value(),
                cookies=access.cookies and access.cookies.get_secret_value(),
                ssl_ca_cert=access.ca_file,
                **({"namespace": namespace} if namespace else {}),
            )

    def upload(self) -> tuple[str, str]:
        """Uploads this version of the pipeline unless the endpoint has it; returns the ids of pipeline and version."""
        with self._api_errors(), tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary, f"{_PIPELINE}.yaml")
            name = write_pipeline(file)
            mine = {"page_size": 2, "filter": _named(_PIPELINE), "namespace": self._namespace}
            there = self._client.list_pipelines(**mine).pipelines
            uploaded = (
                there[0] if there else self._client.upload_pipeline(str(file), _PIPELINE, namespace=self._namespace)
            )
            pipeline = uploaded.pipeline_id
            found = self._client.list_pipeline_versions(pipeline, page_size=2, filter=_named(name)).pipeline_versions
            if found:
                print0(f"submit: version {name} of the pipeline is on the endpoint already")
                return pipeline, found[0].pipeline_version_id
            uploaded = self._client.upload_pipeline_version(str(file), name, pipeline_id=pipeline)
            print0(f"submit: uploaded version {name} of the pipeline")
            return pipeline, uploaded.pipeline_version_id

    def run(self, ids: tuple[str, str], name: str, parameters: Mapping[str, Any], *, experiment: str) -> str:
        """Starts a run; returns its id."""
        with self._api_errors():
            started = self._client.run_pipeline(
                self._experiment(experiment), name, params=dict(parameters), pipeline_id=ids[0], version_id=ids[1]
            )
        return str(started.run_id)

    def schedule(
        self, ids: tuple[str, str], name: str, parameters: Mapping[str, Any], *, experiment: str, cron: str
    ) -> str:
        """Schedules a run at each time of a cron expression of six fields, seconds first; never two at once.

        UserError when the experiment has a schedule of this name.
        """
        with self._api_errors():
            place = self._experiment(experiment)
            listed = self._client.list_recurring_runs(page_size=100, experiment_id=place, filter=_named(name))
            same = [one.recurring_run_id for one in listed.recurring_runs or () if one.display_name == name]
            if same:
                raise UserError(
                    f"--schedule: {experiment} has a schedule called {name!r} already: delete it first, with kfp recurring-run delete {same[0]}, "
                    "or give another --experiment"
                )
            scheduled = self._client.create_recurring_run(
                place, name, cron_expression=cron, max_concurrency=1, no_catchup=True,
                params=dict(parameters), pipeline_id=ids[0], version_id=ids[1],
            )  # fmt: skip
        return str(scheduled.recurring_run_id)

    def follow(self, run_id: str) -> str:
        """Prints the state of each step when it changes, until the run has ended; returns the run's last state."""
        printed: dict[str, str] = {}
        while True:
            run = self._get_run(run_id)
            for task in (run.run_details.task_details if run.run_details else None) or []:
                # Kubeflow has tasks of its own besides, such as train-driver.
                if task.display_name in ("start", *STEPS, "finish") and task.state not in (
                    None,
                    printed.get(task.display_name),
                ):
                    printed[task.display_name] = task.state
                    print0(f"submit: {task.display_name}: {task.state.lower()}{_reason(task.error)}")
            if run.state in _ENDED:
                print0(f"submit: the run has ended: {run.state.lower()}{_reason(run.error)}")
                return str(run.state)
            time.sleep(self._poll_seconds)

    def _get_run(self, run_id: str) -> "kfp_server_api.V2beta1Run":
        """Gets the run, again where the endpoint is away for a while: the run continues meanwhile."""
        first_failure = None
        while True:
            try:
                with self._api_errors():
                    return self._client.get_run(run_id)
            except UserError as error:
                transient = getattr(error.__cause__, "status", 503) in _TRANSIENT
                if not transient or time.monotonic() - (first_failure or time.monotonic()) > _PATIENCE_SECONDS:
                    raise
                if first_failure is None:
                    print0(f"submit: {error}; asking again for {_PATIENCE_SECONDS / 60:.0f} minutes")
                first_failure = first_failure or time.monotonic()
                time.sleep(self._poll_seconds)

    def _experiment(self, name: str) -> str:
        return str(self._client.create_experiment(name, namespace=self._namespace).experiment_id)

    @contextmanager
    def _api_errors(self) -> Iterator[None]:
        import kfp_server_api
        import urllib3

        try:
            # The client logs each failure with its traceback, and what it tries again.
            with quiet_logs(level=logging.CRITICAL), quiet_logs("urllib3"):
                yield
        except kfp_server_api.ApiException as error:
            raise UserError(f"{self._where} answers {error.status} {error.reason}: {_message(error)}") from error
        except (urllib3.exceptions.HTTPError, TimeoutError) as error:
            hint = "name the endpoint with KFP_HOST, or forward a port to the service ml-pipeline-ui"
            raise UserError(f"{self._where} does not answer ({type(error).__name__}): {hint}") from error


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]})


def _reason(error: "kfp_server_api.GoogleRpcStatus | None") -> str:
    return f" ({' '.join(error.message.split())[:300]})" if error and error.message else ""


def _message(error: "kfp_server_api.ApiException") -> str:
    """Returns the server's message without the stack that it adds."""
    try:
        message = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        message = str(error.body)
    hint = "; set KFP_TOKEN or KFP_COOKIES" if error.status in (401, 403) else ""
    return " ".join(message.split())[:300] + hint


def write_pipeline(output: Path, *, namespace: str | None = None) -> str:
    """Writes the compiled pipeline, or with a namespace the manifests of its resources there; returns the name of its version.

    The same version of ours gives the same bytes each time, but another version of kfp other ones: the name has a digest of them.
    """
    from kfp import compiler

    from pipelines.kubeflow.pipeline import distrinews

    logging.getLogger("kfp").setLevel(logging.ERROR)
    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(distrinews, str(output))
    name = f"{version('distrinews')}-{sha256(output.read_bytes()).hexdigest()[:8]}"
    if namespace is not None:
        options = compiler.KubernetesManifestOptions(
            pipeline_version_name=f"{_PIPELINE}-{name.replace('.', '-')}",
            namespace=namespace,
            include_pipeline_manifest=True,
        )
        compiler.Compiler().compile(
            distrinews, str(output), kubernetes_manifest_format=True, kubernetes_manifest_options=options
        )
    return name
