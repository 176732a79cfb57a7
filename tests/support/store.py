"""The objects, logs and faults of the API server of the tests."""

import json
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Any

Object = dict[str, Any]
_WAIT = 10.0


class Store:
    """The state of the server; tests change it as an operator and a kubelet would, and wait for requests of the launcher."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[str, dict[str, Object]] = defaultdict(dict)
        self.history: list[tuple[int, str, str, Object]] = []
        self.version, self.oldest, self.connections = 100, 0, 0
        self.logs: dict[str, list[Log]] = defaultdict(list)
        self.denied: set[tuple[str, str]] = set()
        self.kinds: dict[str, list[str]] = {
            "kubeflow.org/v1": ["pytorchjobs"],
            "kueue.x-k8s.io/v1beta1": ["localqueues"],
        }
        self.failures: list[tuple[str, int, dict[str, str]]] = []
        self.requests: list[tuple[float, str, str]] = []
        self.slow_deletion = self.short_watches = self.kueue = False
        self.tokens: set[str] = set()
        self.on_create: Callable[[], object] = lambda: None
        """Called before an object is stored."""
        self.invalid: dict[str, str] = {}
        """Faults that validation finds in a dry run, by the plural of the kind."""

    # For tests

    def put(self, plural: str, item: Object, kind: str = "") -> Object:
        """Creates or replaces an object."""
        with self.changed:
            name = item["metadata"]["name"]
            there = self.objects[plural].get(name)
            self.version += 1
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            item = json.loads(json.dumps(item))
            item["metadata"] = {
                "uid": there["metadata"]["uid"] if there else str(uuid.uuid4()), "creationTimestamp": now,
                **item["metadata"], "resourceVersion": str(self.version),
            }  # fmt: skip
            self.objects[plural][name] = item
            self.history.append((self.version, plural, kind or ("MODIFIED" if there else "ADDED"), item))
            self.changed.notify_all()
            return item

    def remove(self, plural: str, name: str) -> None:
        with self.changed:
            item = self.objects[plural].pop(name)
            self.version += 1
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
            self.history.append((self.version, plural, "DELETED", item))
            self.changed.notify_all()
            if plural == "pytorchjobs":
                for pod in [
                    name for name, pod in self.objects["pods"].items() if _owner(pod) == item["metadata"]["uid"]
                ]:
                    self.remove("pods", pod)

    def wait_for(self, condition: Callable[[], object]) -> Any:  # noqa: ANN401 - the condition's value
        with self.changed:
            met = self.changed.wait_for(condition, _WAIT)
            assert met, (
                f"never came; the last requests were {[f'{method} {path}' for _, method, path in self.requests][-8:]}"
            )
            return met

    def job(self) -> Object:
        """Returns the one job, as soon as it is there."""
        found: Object = self.wait_for(lambda: next(iter(self.objects["pytorchjobs"].values()), None))
        return found

    def fail(self, path: str, code: int, *, times: int = 1, headers: dict[str, str] | None = None) -> None:
        """Answers the next requests whose path has this part with an error."""
        with self.changed:
            self.failures += [(path, code, headers or {})] * times

    def compact(self) -> None:
        """Forgets the past, as etcd does: watches from before are answered with 410 Gone."""
        with self.changed:
            self.version += 1
            self.oldest = self.version

    def drop_connections(self) -> None:
        with self.changed:
            self.connections += 1
            self.changed.notify_all()

    # For the server

    def failing(self, path: str) -> tuple[int, dict[str, str]] | None:
        with self.changed:
            for number, (part, code, headers) in enumerate(self.failures):
                if part in path:
                    del self.failures[number]
                    return code, headers
            return None


class Log:
    """The output of one instance of a container."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.ended = False


def _owner(item: Object) -> str:
    return next((str(owner["uid"]) for owner in item["metadata"].get("ownerReferences") or []), "")
