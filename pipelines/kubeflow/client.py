"""A Kubeflow Pipelines endpoint: our pipeline put there, run or scheduled, and a run followed to its end."""

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kfp_server_api
import urllib3
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.kubeflow.compile import write
from server.errors import UserError
from trainer.monitoring.console import print0, quiet_logs

_ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
_PIPELINE = "distrinews"
_POLL_SECONDS = 10.0


class Access(BaseSettings):
    """Where the endpoint is and who asks: read from the environment, for neither belongs into a command's history."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="KFP_", use_attribute_docstrings=True)

    host: str = Field(default="", description="URL of the endpoint; empty to find it through the kubeconfig.")
    token: SecretStr | None = None
    """Bearer token."""
    cookies: SecretStr | None = None
    """Cookies of a session, as a browser sends them."""
    ca_file: str | None = None
    """Certificate that the endpoint's is signed with."""


class Endpoint:
    """Says what it does; each fault of the endpoint is a UserError of one line."""

    def __init__(self, access: Access, *, namespace: str | None, poll_seconds: float = _POLL_SECONDS) -> None:
        from kfp.client import Client

        self._where, self._namespace, self._poll_seconds = access.host or "the cluster", namespace, poll_seconds
        with self._told(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the client says on each start which servers it speaks to
            self._client = Client(
                host=access.host or None,
                existing_token=access.token and access.token.get_secret_value(),
                cookies=access.cookies and access.cookies.get_secret_value(),
                ssl_ca_cert=access.ca_file,
                **({"namespace": namespace} if namespace else {}),
            )

    def upload(self) -> tuple[str, str]:
        """Put this version of the pipeline there unless it is there already; returns the ids of pipeline and version."""
        with self._told(), tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary, f"{_PIPELINE}.yaml")
            write(file)
            # What is compiled depends on the version of kfp too, so that ours alone does not name it.
            name = f"{version('distrinews')}-{sha256(file.read_bytes()).hexdigest()[:8]}"
            mine = {"page_size": 2, "filter": _named(_PIPELINE), "namespace": self._namespace}
            there = self._client.list_pipelines(**mine).pipelines
            uploaded = (
                there[0] if there else self._client.upload_pipeline(str(file), _PIPELINE, namespace=self._namespace)
            )
            pipeline = uploaded.pipeline_id
            found = self._client.list_pipeline_versions(pipeline, page_size=2, filter=_named(name)).pipeline_versions
            if found:
                print0(f"submit: version {name} of the pipeline is there already")
                return pipeline, found[0].pipeline_version_id
            uploaded = self._client.upload_pipeline_version(str(file), name, pipeline_id=pipeline)
            print0(f"submit: uploaded version {name} of the pipeline")
            return pipeline, uploaded.pipeline_version_id

    def run(self, ids: tuple[str, str], name: str, form: Mapping[str, Any], *, experiment: str) -> str:
        """Start a run with a filled form; returns its id."""
        with self._told():
            started = self._client.run_pipeline(
                self._experiment(experiment), name, params=dict(form), pipeline_id=ids[0], version_id=ids[1]
            )
        return str(started.run_id)

    def schedule(self, ids: tuple[str, str], name: str, form: Mapping[str, Any], *, experiment: str, cron: str) -> str:
        """Start a run at each time of a cron expression of six fields, seconds first; never two at once."""
        with self._told():
            scheduled = self._client.create_recurring_run(
                self._experiment(experiment), name, cron_expression=cron, max_concurrency=1, no_catchup=True,
                params=dict(form), pipeline_id=ids[0], version_id=ids[1],
            )  # fmt: skip
        return str(scheduled.recurring_run_id)

    def follow(self, run_id: str) -> str:
        """Say what becomes of each step until the run has ended; returns the state it ended with."""
        said: dict[str, str] = {}
        while True:
            with self._told():
                run = self._client.get_run(run_id)
            for task in (run.run_details.task_details if run.run_details else None) or []:
                if task.state and said.get(task.display_name) != task.state:
                    said[task.display_name] = task.state
                    print0(f"submit: {task.display_name}: {task.state.lower()}{_reason(task.error)}")
            if run.state in _ENDED:
                print0(f"submit: the run has ended: {run.state.lower()}{_reason(run.error)}")
                return str(run.state)
            time.sleep(self._poll_seconds)

    def _experiment(self, name: str) -> str:
        return str(self._client.create_experiment(name, namespace=self._namespace).experiment_id)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with quiet_logs(level=logging.CRITICAL):  # the client logs each failed try with its traceback
                yield
        except kfp_server_api.ApiException as error:
            raise UserError(f"{self._where} answers {error.status} {error.reason}: {_message(error)}") from error
        except (urllib3.exceptions.HTTPError, TimeoutError) as error:
            hint = "name the endpoint with KFP_HOST, or forward a port to the service ml-pipeline-ui"
            raise UserError(f"{self._where} does not answer ({type(error).__name__}): {hint}") from error


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]})


def _reason(error: kfp_server_api.GoogleRpcStatus | None) -> str:
    return f" ({' '.join(error.message.split())[:300]})" if error and error.message else ""


def _message(error: kfp_server_api.ApiException) -> str:
    """What the server says, without the stack of its own that it adds."""
    try:
        told = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        told = str(error.body)
    hint = "; KFP_TOKEN or KFP_COOKIES says who you are" if error.status in (401, 403) else ""
    return " ".join(told.split())[:300] + hint
