"""The Kubernetes API of one namespace: requests that urllib3 retries, streams, and one error for every refusal."""

import copy
import itertools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kubernetes
from kubernetes.client import ApiException
from pydantic import Field
from urllib3 import BaseHTTPResponse, Retry
from urllib3.exceptions import HTTPError, MaxRetryError

from server.cli import Settings
from server.errors import UserError

Object = dict[str, Any]
"""An object of Kubernetes as plain JSON."""
Query = Sequence[tuple[str, str]]

NOT_FOUND, CONFLICT, GONE = 404, 409, 410
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CONNECT_SECONDS = 10
_STREAMS = 1024  # a log stream for each pod of a large job, kept open
_MERGE_PATCH = "application/merge-patch+json"


class Polling(Settings):
    """Intervals and timeouts of requests to the API server."""

    interval_seconds: float = Field(default=5, gt=0)
    """Shortest time between two requests for the same thing."""

    max_interval_seconds: float = Field(default=60, gt=0)
    """Longest time between two retries."""

    read_timeout_seconds: float = Field(default=75, gt=0)
    """Time without a byte after which a connection is closed and opened again."""

    timeout_seconds: float = Field(default=900, gt=0)
    """Time for which requests are retried while the API server does not answer."""

    heartbeat_seconds: float = Field(default=60, gt=0)
    """Time between two lines on a job's state while nothing changes."""

    def retry(self) -> Retry:
        """Returns urllib3's policy whose pauses add up to the timeout."""
        pauses = (min(self.interval_seconds * 2**n, self.max_interval_seconds) for n in itertools.count())
        waits = itertools.accumulate(pauses)
        return Retry(
            total=1 + next(n for n, waited in enumerate(waits, 1) if waited >= self.timeout_seconds),
            backoff_factor=self.interval_seconds / 2, backoff_jitter=self.interval_seconds / 2,
            backoff_max=self.max_interval_seconds, status_forcelist=_RETRIED, allowed_methods=None, raise_on_status=False,
        )  # fmt: skip


class ApiError(UserError):
    """A refusal of the API server that a retry does not change: 400, 401, 403, 404, 409, 410, 422."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(f"the API server refuses the request: {status} {message}")
        self.status, self.message, self.reason = status, message, reason


class Cluster:
    """One namespace of a cluster, with the client's own configuration: certificates verified, tokens renewed as they expire."""

    def __init__(
        self, configuration: kubernetes.client.Configuration, namespace: str, polling: Polling | None = None
    ) -> None:
        self.namespace, self.polling = namespace, polling or Polling()
        configuration.retries = self.polling.retry()
        configuration.connection_pool_maxsize = _STREAMS
        self._configuration = configuration
        self._client = kubernetes.client.ApiClient(configuration)
        unretried = copy.copy(configuration)
        unretried.retries = False
        self._unretried = kubernetes.client.ApiClient(unretried)
        self._waiting: dict[object, float] = {}
        self._answered = time.monotonic()

    @property
    def answering_since(self) -> float | None:
        """The time on the monotonic clock since which every request is answered soon; None while one is not."""
        late = time.monotonic() - 2 * self.polling.interval_seconds
        return None if any(asked < late for asked in list(self._waiting.values())) else self._answered

    def within(self, seconds: float) -> "Cluster":
        """Returns the same namespace, whose requests are retried for this long at most."""
        polling = self.polling
        update = {name: min(getattr(polling, name), seconds) for name in ("timeout_seconds", "read_timeout_seconds")}
        return Cluster(copy.copy(self._configuration), self.namespace, polling.model_copy(update=update))

    def request(self, method: str, path: str, *, query: Query = (), body: object = None) -> Object:
        """Returns the answer; ApiError when it is refused, UserError when the server does not answer in time."""
        with self._timed():
            answer: object = self._call(self._client, method, path, query, body, response_type="object")
        if not isinstance(answer, dict):
            raise UserError(f"{self._configuration.host} answers {method} {path} with something that is no JSON object")
        return answer

    @contextmanager
    def stream(self, path: str, *, query: Query = ()) -> Iterator[BaseHTTPResponse]:
        """Yields an answer to read bit by bit."""
        with self._timed():
            response = self._call(self._client, "GET", path, query, None, _preload_content=False)
        try:
            yield response
        finally:
            response.close()

    @contextmanager
    def log(self, pod: str, *, query: Query = ()) -> Iterator[BaseHTTPResponse]:
        """Yields the log of a pod to read bit by bit, without retries: that of a silent container begins with its first line."""
        path = self.path("v1", "pods", pod, "log")
        response = self._call(self._unretried, "GET", path, query, None, _preload_content=False)
        try:
            yield response
        finally:
            response.close()

    def path(self, group: str, plural: str, name: str = "", part: str = "") -> str:
        """Returns the path of a kind or an object; `group` includes the version (kubeflow.org/v1), core kinds are in v1."""
        root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
        parts = [root, "namespaces", quote(self.namespace), plural, quote(name), part]
        return "/".join(part for part in parts if part)

    def find(self, path: str) -> Object | None:
        """Returns the object at a path, or None where there is none."""
        try:
            return self.request("GET", path)
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def _call(self, client: Any, method: str, path: str, query: Query, body: object, **options: Any) -> Any:  # noqa: ANN401 - JSON or a response
        kind = _MERGE_PATCH if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": kind}
        try:
            answer, _, _ = client.call_api(
                path, method, query_params=list(query), header_params=headers, body=body, auth_settings=["BearerToken"],
                _request_timeout=(_CONNECT_SECONDS, self.polling.read_timeout_seconds), **options,
            )  # fmt: skip
        except ApiException as error:
            raise self._error(error) from error
        except HTTPError as error:
            cause = error.reason if isinstance(error, MaxRetryError) else error
            raise self._unanswered(f"{type(cause).__name__}: {cause}") from error
        return answer

    def _error(self, error: ApiException) -> UserError:
        """Returns our error for an error answer, whose body is Kubernetes' Status."""
        text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or error.reason)
        try:
            status: Any = json.loads(text)
            message, reason = str(status["message"]), str(status.get("reason", ""))
        except (ValueError, TypeError, KeyError):
            message, reason = " ".join(text.split())[:300], ""
        if error.status == 0 or error.status in _RETRIED:
            return self._unanswered(f"{error.status or ''} {message}".strip())
        return ApiError(error.status, message, reason)

    def _unanswered(self, reason: str) -> UserError:
        return UserError(f"the API server has not answered for {self.polling.timeout_seconds:g} s: {reason}")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        key, asked = object(), time.monotonic()
        self._waiting[key] = asked
        try:
            yield
        finally:
            del self._waiting[key]
            if (now := time.monotonic()) - asked > 2 * self.polling.interval_seconds:
                self._answered = now


def connect(namespace: str | None = None, *, context: str | None = None, polling: Polling | None = None) -> Cluster:
    """Returns the cluster that this process runs in or, on a laptop, the one of kubeconfig's current context."""
    # It warns of each retry, and a log stream of a silent container is opened again every minute.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    configuration = kubernetes.client.Configuration()
    if _NAMESPACE_FILE.is_file() and context is None:
        kubernetes.config.load_incluster_config(client_configuration=configuration)
        return Cluster(configuration, namespace or _NAMESPACE_FILE.read_text(encoding="utf-8").strip(), polling)
    try:
        kubernetes.config.load_kube_config(context=context, client_configuration=configuration)
        contexts, chosen = kubernetes.config.list_kube_config_contexts()
    except kubernetes.config.ConfigException as error:
        raise UserError(f"no cluster: {error}; set KUBECONFIG, or choose with --context") from error
    if context:
        chosen = next(entry for entry in contexts if entry["name"] == context)
    return Cluster(configuration, namespace or chosen["context"].get("namespace", "default"), polling)
