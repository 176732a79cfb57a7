"""POST /predict and /predict/batch over HTTP, with a small real model."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from server.app import create_app
from server.http.auth import Auth
from server.http.lifecycle import Lifecycle
from server.inference.backends import Choice, candidates
from server.inference.backends.onnx import OnnxBackend
from server.inference.classifier import Classifier
from server.model_folder import read_model_folder
from server.settings import Settings
from tests.support.model_folder import LABELS, MAX_LENGTH, TEXTS, WORDS
from tests.support.servers import predict, serving


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(folder) as (_, client):
        yield client


def test_the_front_page_is_the_documentation(client: httpx.Client) -> None:
    response = client.get("/")
    assert response.is_redirect
    assert response.headers["location"] == "ui"
    assert client.get("/docs").status_code == 200
    described = client.get("/openapi.json").json()["components"]["schemas"]
    assert described["OneText"]["properties"]["text"]["maxLength"] == 10_000
    assert all("description" in field for field in described["Prediction"]["properties"].values())


def test_health_describes_the_model(client: httpx.Client) -> None:
    health = client.get("/health").json()
    assert health["status"] == "healthy"
    assert health["model_loaded"] is True
    assert (health["variant"], health["labels"], health["max_length"]) == ("int8", LABELS, MAX_LENGTH)
    assert health["text_columns"] == []


def test_an_answer_equals_the_model_s_output(client: httpx.Client, folder: Path) -> None:
    ids = [2, WORDS.index("shares"), 1, 3]  # [CLS] shares [UNK] [SEP]
    inputs = {name: np.array([ids]) for name in ("input_ids", "attention_mask")}
    inputs["attention_mask"][:] = 1
    logits = OnnxBackend(folder / "onnx" / "model_int8.onnx").run(**inputs)[0].astype(float)
    expected = np.exp(logits) / np.exp(logits).sum()
    answer = predict(client, "Shares fell")
    assert list(answer["probabilities"]) == LABELS
    assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), rel=1e-6)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-12)
    assert answer["label"] == LABELS[int(expected.argmax())]
    assert answer["confidence"] == max(answer["probabilities"].values())
    assert answer["truncated"] is False


def test_tokens_past_max_length_are_ignored_and_the_answer_is_marked(client: httpx.Client) -> None:
    fits = predict(client, "goal " * (MAX_LENGTH - 2))
    longer = predict(client, "goal " * (MAX_LENGTH - 2) + "bank " * 100)
    assert fits["truncated"] is False
    assert longer == fits | {"truncated": True}


def test_a_batch_answers_in_order_as_each_text_alone(client: httpx.Client) -> None:
    alone = [predict(client, text) for text in TEXTS]
    assert len({str(answer) for answer in alone}) == len(TEXTS), "different texts have different answers"
    assert client.post("/predict/batch", json={"texts": TEXTS}).json() == alone
    assert client.post("/predict/batch", json={"texts": TEXTS[::-1]}).json() == alone[::-1]


def test_clients_at_once_get_the_answers_that_one_gets(client: httpx.Client) -> None:
    alone = [predict(client, text) for text in TEXTS]
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(lambda text: predict(client, text), TEXTS * 20))
    assert together == alone * 20


@pytest.mark.parametrize("text", ["a" * 10_000, "😀" * 10_000, "\u00e9\n\t\u202e goal", "\ufeffgoal", '"\\'])
def test_unusual_texts_are_classified(client: httpx.Client, text: str) -> None:
    body = json.dumps({"text": text})  # with escaped surrogate pairs, the longest form
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert answer.json() == predict(client, text)


BAD_TEXTS: dict[str, tuple[object, str]] = {
    "empty": ("", "at least 1 character"),
    "spaces": (" \t\n\u3000", "visible character"),
    "invisible": ("\u200b\u0001", "visible character"),
    "nul": ("goal\0", "no NUL"),
    "surrogate": ("goal \ud800", "valid Unicode"),
    "too long": ("a" * 10_001, "at most 10000 characters"),
    "number": (5, "valid string"),
    "not a number": (float("nan"), "valid string"),
    "null": (None, "valid string"),
    "object": ({"text": "goal"}, "valid string"),
}


@pytest.mark.parametrize(("value", "right"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_bad_text_is_refused_with_its_place_and_the_fix(client: httpx.Client, value: object, right: str) -> None:
    for path, body, place in (
        ("/predict", {"text": value}, "body/text"),
        ("/predict/batch", {"texts": ["goal", value]}, "body/texts/1"),
    ):
        response = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert response.status_code == 422
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert (problem["status"], problem["title"]) == (422, HTTPStatus(422).phrase)
        assert problem["errors"][0]["place"] == place
        assert right in problem["errors"][0]["detail"]
        assert set(problem["errors"][0]) == {"place", "detail"}, "what was sent is not sent back"


BAD_BODIES: dict[str, tuple[str, bytes, int, str]] = {
    "empty": ("/predict", b"", 422, "should be a JSON object"),
    "null": ("/predict", b"null", 422, "should be a JSON object"),
    "list": ("/predict", b'["goal"]', 422, "should be a JSON object"),
    "no field": ("/predict", b"{}", 422, "Field required"),
    "unknown field": ("/predict", b'{"text": "goal", "txet": 1}', 422, "no field 'txet', only text"),
    "surrogate in a name": ("/predict", rb'{"text": "goal", "\ud800": 1}', 422, r"no field '\ud800', only text"),
    "other route's field": ("/predict/batch", b'{"text": "goal"}', 422, "no field 'text', only texts"),
    "many unknown fields": (
        "/predict",
        b"{%s}" % b",".join(b'"%d":1' % i for i in range(9999)),
        422,
        "no field '0', only text",
    ),
    "cut off": ("/predict", b'{"text": "goal', 422, "not JSON (Unterminated string"),
    "not UTF-8": ("/predict", b'{"text": "\xff"}', 400, "in UTF-8"),
    "too deep": ("/predict", b"[" * 100_000, 400, "should be a JSON object"),
    "endless number": ("/predict", b'{"text": %s}' % (b"1" * 5000), 400, "should be a JSON object"),
    "too big": ("/predict", b'{"text": "%s"}' % (b"a" * 9_000_000), 413, "at most 7684096 bytes"),
    "no texts": ("/predict/batch", b'{"texts": []}', 422, "at least 1 item"),
    "one text": ("/predict/batch", b'{"texts": "goal"}', 422, "valid list"),
    "65 texts": ("/predict/batch", json.dumps({"texts": ["goal"] * 65}).encode(), 422, "at most 64 items"),
}


@pytest.mark.parametrize(("path", "body", "status", "right"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_bad_body_is_refused_with_the_fix(
    client: httpx.Client, path: str, body: bytes, status: int, right: str
) -> None:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert right in response.json()["detail"]


def test_a_body_that_is_not_declared_to_be_json_is_refused(client: httpx.Client) -> None:
    response = client.post("/predict", content=b'{"text": "goal"}', headers={"Content-Type": "text/plain"})
    assert response.status_code == 422
    assert "Content-Type: application/json" in response.json()["detail"]


class Watched:
    """The real backend, and a step of a test before each of its runs."""

    name = "watched"
    batches = False
    gpu = False
    length_step = 1

    def __init__(self, folder: Path) -> None:
        self._backend = OnnxBackend(folder / "onnx" / "model.onnx")
        self._lock = threading.Lock()
        self._running = 0
        self.most_running = 0
        self.before: Any = lambda: None

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        self._count(1)
        self.before()
        logits = self._backend.run(input_ids, attention_mask)
        self._count(-1)
        return logits

    def _count(self, change: int) -> None:
        with self._lock:
            self._running += change
            self.most_running = max(self.most_running, self._running)


@contextmanager
def watched(folder: Path, *, workers: int) -> Iterator[tuple[Watched, httpx.AsyncClient]]:
    backend = Watched(folder)
    settings = Settings(workers=workers)
    classifier = Classifier(Choice(read_model_folder(folder, candidates("onnx-fp32")), backend), settings)
    app = create_app(classifier, Lifecycle(classifier, drain_seconds=0), settings, Auth())
    transport = httpx.ASGITransport(app)
    yield backend, httpx.AsyncClient(transport=transport, base_url="http://test")
    classifier.close()


def test_health_answers_while_texts_are_classified(folder: Path) -> None:
    release = threading.Event()
    finished: list[str] = []

    async def send(client: httpx.AsyncClient) -> None:
        async def classify() -> None:
            assert (await client.post("/predict", json={"text": "goal"})).status_code == 200
            finished.append("predict")

        classifying = asyncio.create_task(classify())
        await asyncio.sleep(0.1)  # so that the text is with a worker, or would be blocking the loop
        assert (await client.get("/health")).status_code == 200
        finished.append("health")
        release.set()
        await classifying

    with watched(folder, workers=1) as (backend, client):
        backend.before = lambda: release.wait(5)
        asyncio.run(send(client))
    assert finished == ["health", "predict"]


def test_as_many_texts_run_at_once_as_there_are_workers_and_no_more(folder: Path) -> None:
    meeting = threading.Barrier(2, timeout=5)

    async def send(client: httpx.AsyncClient) -> int:
        return (await client.post("/predict/batch", json={"texts": ["goal"] * 8})).status_code

    with watched(folder, workers=2) as (backend, client):
        backend.before = meeting.wait  # broken, and an error, unless two are there
        assert asyncio.run(send(client)) == 200
    assert backend.most_running == 2
