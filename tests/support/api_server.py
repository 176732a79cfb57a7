"""A small Kubernetes API server over real HTTP: objects with versions, watches, pod logs, and the ways in which they fail."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.support.store import Object, Store

_WAIT = 10.0


class Failure(Exception):  # noqa: N818 - an answer
    def __init__(self, code: int, reason: str, message: str = "") -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message or reason


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    store: Store

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in the base
        """A client that left is no error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        store, url = self.server.store, urlsplit(self.path)
        with store.changed:
            store.requests.append((time.monotonic(), self.command, self.path))
            store.tokens.add(self.headers.get("Authorization", ""))
            store.changed.notify_all()
        length = int(self.headers.get("Content-Length") or 0)
        body = self.body(self.rfile.read(length))
        if failure := store.failing(f"{self.command} {self.path}"):
            self.answer({"kind": "Status", "code": failure[0], "message": "injected", "reason": "Injected"}, *failure)
            return
        try:
            self.route([part for part in url.path.split("/") if part], dict(parse_qsl(url.query)), body)
        except Failure as error:
            self.answer(
                {"kind": "Status", "code": error.code, "message": error.message, "reason": error.reason}, error.code
            )

    do_GET = do_POST = do_DELETE = do_PATCH = handle_any  # noqa: N815 - named by the base

    def body(self, data: bytes) -> Object:
        """Returns the body of a request."""
        sent: Object = json.loads(data or b"{}")
        return sent

    def answer(self, value: object, code: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def route(self, parts: list[str], query: dict[str, str], body: Object) -> None:
        store = self.server.store
        if parts[-1] == "selfsubjectaccessreviews":
            wish = body["spec"]["resourceAttributes"]
            resource = "/".join(part for part in (wish["resource"], wish["subresource"]) if part)
            self.answer({"status": {"allowed": (wish["verb"], resource) not in store.denied}}, 201)
        elif parts[-1] == "selfsubjectreviews":
            self.answer({"status": {"userInfo": {"username": "system:serviceaccount:news:pipeline-runner"}}}, 201)
        elif parts[0] == "apis" and "namespaces" not in parts:
            self.discover("/".join(parts[1:]))
        else:
            at = parts.index("namespaces") + 2
            plural, *rest = parts[at:]
            if rest[1:] == ["log"]:
                self.log_of(rest[0], query)
            elif rest:
                self.one(plural, rest[0], body)
            elif self.command == "POST":
                self.create(plural, body, dry_run=query.get("dryRun") == "All")
            elif query.get("watch") == "true":
                self.watch(plural, query)
            else:
                self.list(plural, query)

    def discover(self, group: str) -> None:
        kinds = self.server.store.kinds
        versions = [version for version in kinds if version == group or version.startswith(f"{group}/")]
        if not versions:
            raise Failure(404, "NotFound")
        resources = [{"name": name} for name in kinds.get(group, [])]
        self.answer({"preferredVersion": {"groupVersion": versions[0]}, "resources": resources})

    def create(self, plural: str, body: Object, *, dry_run: bool = False) -> None:
        store = self.server.store
        with store.changed:
            if dry_run and (fault := store.invalid.get(plural)):
                raise Failure(422, "Invalid", fault)
            if body["metadata"]["name"] in store.objects[plural]:
                raise Failure(409, "AlreadyExists")
            if dry_run:
                self.answer(body, 201)
                return
            store.on_create()
            if store.kueue:  # its webhook suspends jobs that have a queue
                body["spec"]["runPolicy"]["suspend"] = True
            self.answer(store.put(plural, body), 201)

    def one(self, plural: str, name: str, body: Object) -> None:
        store = self.server.store
        with store.changed:
            item = store.objects[plural].get(name)
            if item is None:
                raise Failure(404, "NotFound", f"{plural} {name!r} not found")
            if self.command == "PATCH":
                if self.headers["Content-Type"] != "application/merge-patch+json":
                    raise Failure(415, "UnsupportedMediaType")  # a custom resource takes no strategic merge
                version = body["metadata"].get("resourceVersion")
                if version not in (None, item["metadata"]["resourceVersion"]):
                    raise Failure(409, "Conflict")
                item = store.put(plural, {**item, "metadata": {**item["metadata"], **body["metadata"]}})
            if self.command == "DELETE":
                if body.get("preconditions", {}).get("uid") not in (None, item["metadata"]["uid"]):
                    raise Failure(409, "Conflict")
                if store.slow_deletion and body.get("propagationPolicy") == "Foreground":  # until the pods are gone
                    store.put(
                        plural, {**item, "metadata": {**item["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}
                    )
                else:
                    store.remove(plural, name)
            self.answer(item)

    def list(self, plural: str, query: dict[str, str]) -> None:
        store = self.server.store
        with store.changed:
            items = [item for item in store.objects[plural].values() if _selected(item, query)]
            version = {"resourceVersion": str(store.version)}
            self.answer({**self.kind_of(plural, "List"), "metadata": version, "items": items})

    def kind_of(self, plural: str, suffix: str = "") -> Object:
        """Returns the kind of a list or a bookmark of these objects; our own client does not read it."""
        return {"apiVersion": "v1", "kind": f"{plural}{suffix}"}

    def watch(self, plural: str, query: dict[str, str]) -> None:
        store, seen = self.server.store, int(query["resourceVersion"])
        end = time.monotonic() + float(query["timeoutSeconds"])
        with self.chunks() as send, store.changed:
            connections = store.connections
            if seen < store.oldest:
                send(
                    {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
                )
                return
            while time.monotonic() < end:
                news = [change for change in store.history if change[0] > seen and change[1] == plural]
                for version, _, kind, item in news:
                    seen = version
                    if _selected(item, query):
                        send({"type": kind, "object": item})
                send(
                    {"type": "BOOKMARK", "object": {**self.kind_of(plural), "metadata": {"resourceVersion": str(seen)}}}
                )
                if store.short_watches:
                    return
                store.changed.wait(min(0.5, max(0.01, end - time.monotonic())))
                if store.connections != connections:
                    raise ConnectionError

    def log_of(self, pod: str, query: dict[str, str]) -> None:
        store = self.server.store
        logs, previous = store.logs[pod], query.get("previous") == "true"
        if pod not in store.objects["pods"]:
            raise Failure(404, "NotFound")
        if len(logs) < (2 if previous else 1):
            raise Failure(400, "BadRequest", "container is waiting to start")
        log, sent = logs[-2 if previous else -1], 0
        with store.changed:  # a kubelet sends no headers before the first line
            connections = store.connections
            follow = query.get("follow") == "true"
            store.changed.wait_for(
                lambda: log.lines or log.ended or not follow or store.connections != connections, _WAIT
            )
        with self.chunks() as send, store.changed:
            while True:
                for stamp, text in log.lines[sent:]:
                    sent += 1
                    if stamp[:19] >= query.get("sinceTime", "")[:19]:
                        send(f"{stamp} {text}\n".encode())
                if log.ended or not follow or pod not in store.objects["pods"]:
                    return
                store.changed.wait(0.5)
                if store.connections != connections:
                    send(b"2026-11-21T00:00:00Z half of a li")
                    raise ConnectionError

    @contextmanager
    def chunks(self) -> Iterator[Callable[[object], None]]:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def send(value: object) -> None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        try:
            yield send
        except OSError:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")


def _selected(item: Object, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels") or {}
    wanted = [pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair]
    if any(labels.get(name) != value for name, value in wanted):
        return False
    field = query.get("fieldSelector", "")
    return not field or item["metadata"]["name"] == field.removeprefix("metadata.name=")


@contextmanager
def serving(store: Store, port: int = 0, handler: type[Handler] = Handler) -> Iterator[int]:
    """Serves on a free port, or on this one; yields the port."""
    server = Server(("127.0.0.1", port), handler)
    server.store = store
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        store.drop_connections()
        thread.join()
