"""The Open Inference Protocol v2, through Triton's own client and in bytes of our own."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from tests.support.model_folder import LABELS, TEXTS
from tests.support.servers import gated, predict, serving

INFER = "/v2/models/news/infer"
OUTPUTS = ("label", "confidence", "probabilities", "truncated")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(folder, "--model-name", "news", "--model-version", "7") as (_, client):
        yield client


@pytest.fixture(scope="module")
def tritons(client: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(client.base_url.netloc.decode()) as ours:
        yield ours


def text_input(texts: list[str], *, binary: bool, column: bool = False) -> triton.InferInput:
    array = np.array([text.encode() for text in texts], dtype=np.object_)
    array = array[:, None] if column else array
    tensor = triton.InferInput("text", list(array.shape), "BYTES")
    return tensor.set_data_from_numpy(array, binary_data=binary)


def inference_request(**changed: object) -> dict[str, object]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["goal"]} | changed]}


def test_a_triton_client_reads_the_metadata(tritons: triton.InferenceServerClient) -> None:
    assert tritons.is_server_live()
    assert tritons.is_server_ready()
    assert tritons.is_model_ready("news")
    assert tritons.is_model_ready("news", "7")
    assert not tritons.is_model_ready("olds")
    assert tritons.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    model = tritons.get_model_metadata("news", "7")
    assert (model["name"], model["versions"], model["platform"]) == ("news", ["7"], "onnxruntime_onnx")
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in model["outputs"]] == list(OUTPUTS)
    assert model["outputs"][2] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}
    assert model["parameters"]["labels"] == LABELS


@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_a_triton_client_gets_the_answer_of_predict(
    client: httpx.Client,
    tritons: triton.InferenceServerClient,
    binary_in: bool,
    binary_out: bool,
    column: bool,
) -> None:
    texts = [*TEXTS, "Übermut 😀 goal"]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    answer = tritons.infer(
        "news", [text_input(texts, binary=binary_in, column=column)], outputs=outputs, request_id="42"
    )
    facts = answer.get_response()
    assert (facts["model_name"], facts["model_version"], facts["id"]) == ("news", "7", "42")
    expected = [predict(client, text) for text in texts]
    labels = [label.decode() if binary_out else label for label in answer.as_numpy("label")]
    assert labels == [one["label"] for one in expected]
    assert answer.as_numpy("truncated").tolist() == [one["truncated"] for one in expected]
    assert answer.as_numpy("confidence") == pytest.approx([one["confidence"] for one in expected], rel=1e-6)
    probabilities = answer.as_numpy("probabilities")
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (len(texts), len(LABELS)))
    assert probabilities == pytest.approx(np.array([list(one["probabilities"].values()) for one in expected]), rel=1e-6)


def test_a_triton_client_that_wants_nothing_special_gets_all_outputs_in_binary(
    tritons: triton.InferenceServerClient,
) -> None:
    answer = tritons.infer("news", [text_input(["goal"], binary=True)])
    assert [output["name"] for output in answer.get_response()["outputs"]] == list(OUTPUTS)
    assert all("data" not in output for output in answer.get_response()["outputs"])
    assert answer.as_numpy("label")[0].decode() in LABELS


def test_the_best_classes_come_in_the_form_of_triton(
    client: httpx.Client, tritons: triton.InferenceServerClient
) -> None:
    wanted = [triton.InferRequestedOutput("probabilities", class_count=2)]
    found = tritons.infer("news", [text_input(["goal", "bank"], binary=True)], outputs=wanted).as_numpy("probabilities")
    assert found.shape == (2, 2)
    for row, text in zip(found.tolist(), ("goal", "bank"), strict=True):
        best = sorted(predict(client, text)["probabilities"].items(), key=lambda pair: -pair[1])[:2]
        assert [one.decode() for one in row] == [f"{p:f}:{LABELS.index(label)}:{label}" for label, p in best]


def test_a_triton_client_s_timeout_is_the_deadline_of_the_request(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder, max_queued_texts=3, max_batch_texts=3) as served:
            first = served.predict()
            await served.until_waiting(0)
            late = await served.client.post(
                "/v2/models/distrinews/infer", json=inference_request() | {"parameters": {"timeout": 50_000}}
            )
            assert late.status_code == 504
            assert late.json() == {
                "error": "no answer within 50 ms; the header X-Request-Timeout-Ms sets the time that a request may take"
            }
            waiting = [
                served.predict() for _ in range(3)
            ]  # the late one, which no worker has come to yet, takes no place
            await served.until_waiting(3)
            full = await served.client.post("/v2/models/distrinews/infer", json=inference_request())
            assert (full.status_code, list(full.json())) == (429, ["error"])
            assert int(full.headers["retry-after"]) >= 1
            assert full.headers["content-type"] == "application/json"
            served.backend.open.set()
            assert [(await one).status_code for one in [first, *waiting]] == [200] * 4

    asyncio.run(check())


def test_the_json_alone_is_enough_for_any_client(client: httpx.Client) -> None:
    body = {"inputs": [inference_request()["inputs"][0]], "outputs": [{"name": "label"}], "model_name": "news"}  # type: ignore[index]
    answer = client.post(INFER, content=json.dumps(body))  # without a content type, as tritonclient sends it
    assert answer.headers["content-type"] == "application/json"
    assert "infer;dur=" in answer.headers["server-timing"]
    assert answer.json() == {
        "model_name": "news",
        "model_version": "7",
        "outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "data": [predict(client, "goal")["label"]]}],
    }
    nested = client.post(
        "/v2/models/news/versions/7/infer", json=inference_request(shape=[2, 1], data=[["goal"], ["bank"]])
    )
    assert nested.json()["outputs"][0]["data"] == [predict(client, text)["label"] for text in ("goal", "bank")]


BAD: dict[str, tuple[object, str]] = {
    "not JSON": (b"{", "is not what it should be: Invalid JSON"),
    "empty": (b"", "Invalid JSON"),
    "list": ([], "should be an object"),
    "too deep": (b"[" * 100_000, "Invalid JSON: recursion limit"),
    "surrogate": (b'{"id": "\\ud800"}', "Invalid JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "Invalid JSON"),
    "no inputs": ({"inputs": []}, "inputs: List should have at least 1 item"),
    "two inputs": ({"inputs": [inference_request()] * 2}, "inputs: List should have at most 1 item"),
    "other input": (inference_request(name="txet"), "inputs/0/name: Input should be 'text'"),
    "numbers": (inference_request(datatype="FP32", data=[1.5]), "inputs/0/datatype: Input should be 'BYTES'"),
    "not a number": (inference_request(data=[float("nan")]), "inputs/0/data/0: Input should be a valid string"),
    "number": (inference_request(data=[5]), "inputs/0/data/0: Input should be a valid string"),
    "blank": (
        inference_request(data=["goal", " "], shape=[2]),
        "inputs/0/data/1: Text should have a visible character",
    ),
    "nul": (inference_request(data=["\0a"]), "inputs/0/data/0: Text should have no NUL"),
    "too long": (
        inference_request(data=["a" * 10_001]),
        "inputs/0/data/0: String should have at most 10000 characters",
    ),
    "too many": (inference_request(data=["a"] * 65, shape=[65]), "inputs/0/data: List should have at most 64 items"),
    "none": (inference_request(data=[], shape=[0]), "inputs/0/data: List should have at least 1 item"),
    "shape": (inference_request(shape=[2]), "inputs/0/shape is [2], but there are 1 texts: it should be [1]"),
    "shape of two columns": (inference_request(shape=[1, 2]), "inputs/0/shape is [1, 2]"),
    "huge shape": (inference_request(shape=[10**30]), "inputs/0/shape"),
    "no data": (inference_request(data=[], parameters={"binary_data_size": 5}), "0 bytes follow the JSON"),
    "other output": (
        inference_request() | {"outputs": [{"name": "logits"}]},
        "outputs/0/name: Input should be 'label'",
    ),
    "classes of labels": (
        inference_request() | {"outputs": [{"name": "label", "parameters": {"classification": 1}}]},
        "outputs/0: The parameter classification is only for probabilities",
    ),
}


@pytest.mark.parametrize(("body", "expected"), BAD.values(), ids=BAD)
def test_a_bad_request_is_refused_in_the_protocol_s_own_form(client: httpx.Client, body: object, expected: str) -> None:
    answer = client.post(INFER, content=body if isinstance(body, bytes) else json.dumps(body))
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert expected in answer.json()["error"]


BAD_BINARY: dict[str, tuple[bytes, int, str]] = {
    "cut off": (b"\x05\0\0\0goa", 7, "the binary data of inputs/0 ends inside of text 0"),
    "cut off in a length": (b"\x01\0\0\0a\x05\0", 7, "ends inside of text 1"),
    "endless": (b"\xff\xff\xff\xffa", 5, "ends inside of text 0"),
    "not UTF-8": (b"\x01\0\0\0\xff", 5, "text 0 is not UTF-8"),
    "more than declared": (
        b"\x01\0\0\0a+",
        5,
        "6 bytes follow the JSON, but inputs/0/parameters/binary_data_size is 5",
    ),
    "nothing": (b"", 0, "there are 0 texts"),
}


@pytest.mark.parametrize(("data", "size", "expected"), BAD_BINARY.values(), ids=BAD_BINARY)
def test_bad_binary_data_is_refused(client: httpx.Client, data: bytes, size: int, expected: str) -> None:
    head = json.dumps(inference_request(data=[], parameters={"binary_data_size": size})).encode()
    answer = client.post(INFER, content=head + data, headers={"Inference-Header-Content-Length": str(len(head))})
    assert answer.status_code == 400
    assert expected in answer.json()["error"]


def test_a_json_length_beyond_the_body_is_refused(client: httpx.Client) -> None:
    answer = client.post(INFER, json=inference_request(), headers={"Inference-Header-Content-Length": "9999"})
    assert (answer.status_code, "9999 is more than the" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("method", "path", "status", "expected"),
    [
        ("POST", "/v2/models/olds/infer", 404, "There is no model 'olds', only news"),
        ("GET", "/v2/models/news/versions/8", 404, "There is no version '8' of news, only 7"),
        ("GET", "/v2/models/n%C3%A9ws/ready", 404, r"There is no model 'n\xe9ws'"),
        ("GET", "/v2/nothing", 404, "Not Found"),
        ("GET", INFER, 405, "Method Not Allowed"),
    ],
)
def test_anything_missing_is_an_error_in_the_protocol_s_form(
    client: httpx.Client, method: str, path: str, status: int, expected: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert expected in answer.json()["error"]
    assert client.get("/v2x").json()["status"] == 404, "elsewhere a problem stays a problem"


def test_a_triton_client_gets_the_error(tritons: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="There is no model 'olds', only news"):
        tritons.infer("olds", [text_input(["goal"], binary=True)])
    with pytest.raises(InferenceServerException, match="Text should have a visible character"):
        tritons.infer("news", [text_input([" "], binary=True)])


def test_a_server_that_stops_is_not_ready_for_the_protocol_either(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder) as served:
            served.backend.open.set()
            assert (await served.client.get("/v2/health/ready")).json() == {"live": True, "ready": True}
            served.lifecycle.draining = True
            for path in ("/v2/health/ready", "/v2/models/distrinews/ready"):
                answer = await served.client.get(path)
                assert (answer.status_code, answer.json()) == (503, {"error": "the server is stopping"})
            assert (await served.client.get("/v2/health/live")).json() == {"live": True}

    asyncio.run(check())


def test_a_failure_of_the_backend_has_the_protocol_s_form_too(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder) as served:

            def fails(*_: object) -> None:
                raise MemoryError

            served.backend.run = fails  # type: ignore[method-assign,assignment]
            answer = await served.client.post("/v2/models/distrinews/infer", json=inference_request())
            detail = "The server failed; its log has the error"
            assert (answer.status_code, answer.json()) == (500, {"error": detail})
            answer = await served.predict()
            assert (answer.json()["status"], answer.json()["detail"]) == (500, detail)

    asyncio.run(check())
