"""An HTTP server whose answers a test decides."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LABELS = ["World", "Sports", "Business"]
HEALTH: dict[str, Any] = {
    "labels": LABELS, "version": "1", "engine": "stub", "variant": "int8", "sha256": "0" * 64,
    "max_batch_texts": 4, "max_text_characters": 100,
}  # fmt: skip
Reply = tuple[int, object, Mapping[str, str]]
"""A status, a body (bytes unchanged, all else as JSON) and headers."""
Answer = Callable[[list[str], BaseHTTPRequestHandler], Reply]


def sports(texts: list[str]) -> Reply:
    """The answer to a batch of which every text is about sports."""
    chances = {"World": 0.1, "Sports": 0.8, "Business": 0.1}
    one = {"label": "Sports", "confidence": 0.8, "probabilities": chances, "truncated": False}
    return 200, [one for _ in texts], {}


@contextmanager
def answering(
    answer: Answer = lambda texts, _: sports(texts), health: Callable[[], Reply] = lambda: (200, HEALTH, {})
) -> Iterator[str]:
    """Answers batches and /health by these functions; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(*health())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*answer(body["texts"], self))

        def _send(self, status: int, body: object, headers: Mapping[str, str]) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
