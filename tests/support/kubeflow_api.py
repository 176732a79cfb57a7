"""An HTTP server that speaks the part of Kubeflow Pipelines' API that `submit` needs."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "a-secret-token"  # noqa: S105 - of this test alone


@dataclass
class Kubeflow:
    """The requests that the server got, and its answers."""

    port: int = 0
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    schedules: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    outages: list[int] = field(default_factory=list)
    """Statuses with which the next requests for a run are refused."""

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:  # noqa: ANN401 - JSON
        self.requests.append((method, path, body))
        if self.outages and "/runs/" in path:
            return self.outages.pop(0), {"message": "the proxy has no upstream"}
        given = body if isinstance(body, dict) else {}
        answers: dict[tuple[str, str], Callable[[], Any]] = {
            ("GET", "/healthz"): lambda: {"multi_user": False},
            ("GET", "/pipelines"): lambda: {"pipelines": self.pipelines},
            ("POST", "/pipelines/upload"): lambda: _added(self.pipelines, pipeline_id="p1", display_name=query["name"]),
            ("GET", "/pipelines/p1/versions"): lambda: {"pipeline_versions": self._versions_named(query["filter"])},
            ("POST", "/pipelines/upload_version"): lambda: _added(
                self.versions, pipeline_id="p1", pipeline_version_id="v1", display_name=query["name"]
            ),
            ("GET", "/experiments"): lambda: {"experiments": []},
            ("POST", "/experiments"): lambda: {"experiment_id": "e1", **given},
            ("POST", "/runs"): lambda: {"run_id": "r1", **given},
            ("GET", "/recurringruns"): lambda: {"recurringRuns": self.schedules},
            ("POST", "/recurringruns"): lambda: _added(self.schedules, recurring_run_id="s1", **given),
            ("GET", "/runs/r1"): lambda: self.states.pop(0) if len(self.states) > 1 else self.states[0],
        }
        found = answers.get((method, path.removeprefix("/apis/v2beta1")))
        return (200, found()) if found else (404, {"message": f"no {path}"})

    def _versions_named(self, predicate: str) -> list[dict[str, Any]]:
        wanted = json.loads(predicate)["predicates"][0]["stringValue"]
        return [one for one in self.versions if one["display_name"] == wanted]


def _added(things: list[dict[str, Any]], **thing: str) -> dict[str, Any]:
    things.append(thing)
    return things[-1]


@contextmanager
def serving(kubeflow: Kubeflow) -> Iterator[Kubeflow]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(content) if content and "json" in self.headers["Content-Type"] else content
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                status, body = kubeflow.answer(self.command, url.path, query, body)
            else:
                status, body = 401, {"message": "who are you?", "details": ["a stack"]}
            answer = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815 - as the base class calls it

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        kubeflow.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield kubeflow
        finally:
            server.shutdown()
            thread.join()
