"""The API server, asked with patience: again after 429, 5xx and lost connections, with growing pauses, until patience ends."""

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kubernetes
from kubernetes.client import ApiException
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from pipelines.job.settings import Object, Pace
from server.errors import UserError

Query = Sequence[tuple[str, str]]
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CONNECT_SECONDS = 10
_STREAMS = 1024  # a log stream for each pod of a large job, kept open


class Refused(UserError):  # noqa: N818 - an answer, not always an error
    """An answer of the API server that trying again does not change: 400, 403, 404, 409, 410, 422."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(f"the API server refuses it: {status} {message}")
        self.status, self.message, self.reason = status, message, reason


class Unanswered(Exception):  # noqa: N818 - the name says what happened
    """No answer, or one that may be another in a while."""

    def __init__(self, why: str, retry_after: float = 0) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Cluster:
    """One namespace of a cluster, with the client's own configuration: certificates checked, tokens read anew as they expire."""

    def __init__(
        self, configuration: kubernetes.client.Configuration, namespace: str, pace: Pace | None = None
    ) -> None:
        configuration.retries = False  # we try again, with pauses
        configuration.connection_pool_maxsize = _STREAMS
        self.namespace, self.pace = namespace, pace or Pace()
        self._client = kubernetes.client.ApiClient(configuration)
        self._failing: set[object] = set()
        self._recovered = time.monotonic()

    @property
    def answering_since(self) -> float | None:
        """When it began to answer all that we ask, on the monotonic clock; None while it does not."""
        return None if self._failing else self._recovered

    def request(
        self, method: str, path: str, *, query: Query = (), body: object = None, patience_seconds: float | None = None
    ) -> Object:
        """Ask and, unless it is refused, ask again until there is an answer; UserError when patience ends."""
        tries = Tries(self, patience_seconds=patience_seconds)
        while True:
            try:
                with self._open(
                    method, path, query, body, timeout=(_CONNECT_SECONDS, self.pace.silence_seconds)
                ) as response:
                    answer: Object = json.loads(response.read() or b"{}")
            except (Unanswered, HTTPError, json.JSONDecodeError) as error:
                tries.pause(error)
            else:
                tries.succeeded()
                return answer

    @contextmanager
    def stream(self, path: str, *, query: Query = ()) -> Iterator[BaseHTTPResponse]:
        """An answer that goes on; it is given up when nothing comes for a while."""
        with self._open("GET", path, query, None, timeout=(_CONNECT_SECONDS, self.pace.silence_seconds)) as response:
            yield response

    def path(self, group: str, plural: str, name: str = "", part: str = "") -> str:
        """Where the objects of a kind are; `group` has its version, as in kubeflow.org/v1, and core kinds are in v1."""
        root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
        parts = [root, "namespaces", quote(self.namespace), plural, quote(name), part]
        return "/".join(part for part in parts if part)

    @contextmanager
    def _open(
        self, method: str, path: str, query: Query, body: object, *, timeout: tuple[float, float]
    ) -> Iterator[BaseHTTPResponse]:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": kind}
        try:
            response, _, _ = self._client.call_api(
                path, method, query_params=list(query), header_params=headers, body=body,
                auth_settings=["BearerToken"], _preload_content=False, _request_timeout=timeout,
            )  # fmt: skip
        except ApiException as error:
            raise _understand(error) from error
        except HTTPError as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from error
        try:
            yield response
        finally:
            response.close()

    def failing(self, who: object) -> None:
        self._failing.add(who)

    def answering(self, who: object) -> None:
        if who in self._failing:
            self._failing.discard(who)
            self._recovered = time.monotonic()


class Tries:
    """Pauses between tries at one thing: longer each time, in part random, never shorter than the interval, and not for ever."""

    def __init__(
        self, cluster: Cluster, *, stop: threading.Event | None = None, patience_seconds: float | None = None
    ) -> None:
        self._cluster, self._stop, self._count = cluster, stop or threading.Event(), 0
        self._patience = patience_seconds or cluster.pace.patience_seconds
        self._failing_since: float | None = None

    def succeeded(self) -> None:
        self._count, self._failing_since = 0, None
        self._cluster.answering(self)

    def pause(self, error: Exception) -> None:
        """Wait before the next try; UserError when it has failed for too long."""
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since > self._patience:
            self._cluster.answering(self)
            raise UserError(f"the API server has not answered for {self._patience:g} s: {error}") from error
        pace = self._cluster.pace
        if now - self._failing_since > pace.patience_seconds:
            self._cluster.answering(self)  # the others do not wait for this one
        elif self._count:  # a lost connection is nothing yet; one that cannot be made again is
            self._cluster.failing(self)
        seconds = min(pace.interval_seconds * 2**self._count, pace.longest_seconds)
        self._count += 1
        seconds = max(seconds, min(getattr(error, "retry_after", 0), pace.patience_seconds)) * random.uniform(1, 1.5)
        self._stop.wait(seconds)


def connect(namespace: str | None = None, *, context: str | None = None, pace: Pace | None = None) -> Cluster:
    """The cluster that this process runs in or, on a laptop, that of the current context of kubeconfig."""
    configuration = kubernetes.client.Configuration()
    if _NAMESPACE_FILE.is_file() and context is None:
        kubernetes.config.load_incluster_config(client_configuration=configuration)
        return Cluster(configuration, namespace or _NAMESPACE_FILE.read_text(encoding="utf-8").strip(), pace)
    try:
        kubernetes.config.load_kube_config(context=context, client_configuration=configuration)
        contexts, chosen = kubernetes.config.list_kube_config_contexts()
    except kubernetes.config.ConfigException as error:
        raise UserError(f"no cluster: {error}; set KUBECONFIG, or choose with --context") from error
    if context:
        chosen = next(entry for entry in contexts if entry["name"] == context)
    return Cluster(configuration, namespace or chosen["context"].get("namespace", "default"), pace)


def _understand(error: ApiException) -> Refused | Unanswered:
    """What an error answer means; its body is Kubernetes' Status."""
    said = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or error.reason)
    try:
        status: Any = json.loads(said)
        message, reason = str(status["message"]), str(status.get("reason", ""))
    except (ValueError, TypeError, KeyError):
        message, reason = " ".join(said.split())[:300], ""
    if error.status in (0, 401, 408, 429) or error.status >= 500:
        wait = str((error.headers or {}).get("Retry-After", "0"))
        return Unanswered(f"{error.status} {message}", float(wait) if wait.isdigit() else 0)
    return Refused(error.status, message, reason)
