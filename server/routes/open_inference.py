"""The Open Inference Protocol v2, which the clients of KServe and Triton speak."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Request, Response
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.lifecycle import Lifecycle
from server.http.problems import MEDIA_TYPE, TimeoutHeader, inline_schema, problem
from server.inference.classifier import Classifier, Prediction, visible_text
from server.routes.predict import text_limits, while_connected
from server.routes.tensors import (
    JSON_LENGTH,
    InferRequest,
    InferResponse,
    OutputName,
    OutputWanted,
    ProtocolError,
    Tensor,
    best_classes,
    explain,
    read_request,
    write_response,
)
from server.settings import Settings

_TAGS: list[Any] = ["Open Inference Protocol v2"]
_BINARY = "application/octet-stream"
_STATUS = {422: 400}  # the protocol's status for a request that cannot be understood
_BINARY_CONTENT = {_BINARY: {"schema": {"type": "string", "format": "binary"}}}


class Failure(BaseModel):
    error: str
    """The fault and the fix."""


class Server(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    live: bool  # as the protocol's text has it
    ready: bool  # as KServe's client reads it


class ModelReady(BaseModel):
    name: str
    ready: bool


class TensorFacts(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    """-1 is the number of texts."""


class Model(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorFacts]
    outputs: list[TensorFacts]
    parameters: dict[str, list[str]]
    """labels: the classes, in the order of probabilities."""


def router(classifier: Classifier, lifecycle: Lifecycle, settings: Settings) -> APIRouter:
    """Returns the routes that describe the model and run it."""
    routes = APIRouter(prefix="/v2", tags=_TAGS)
    server = Server(
        name="distrinews", version=version("distrinews"), extensions=["binary_tensor_data", "classification"]
    )

    @routes.get("", summary="Describe the server")
    async def v2_server() -> Server:
        return server

    for path, dependencies in _model_paths(settings):
        on_path = APIRouter(prefix=path, dependencies=dependencies)
        _add_model(on_path, classifier, lifecycle, settings)
        _add_infer(on_path, classifier, settings)
        routes.include_router(on_path)
    return routes


def health_router(lifecycle: Lifecycle) -> APIRouter:
    """Returns the probes, which are public."""
    routes = APIRouter(prefix="/v2/health", tags=_TAGS)

    @routes.get("/live", summary="As /livez", response_model=Live, responses=failures(503))
    async def v2_live() -> Live | Response:
        reason = lifecycle.not_alive_reason()
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, reason) if reason else Live(live=True)

    @routes.get("/ready", summary="As /readyz", response_model=Ready, responses=failures(503))
    async def v2_ready() -> Ready | Response:
        reason = lifecycle.not_ready_reason()
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, reason) if reason else Ready(live=True, ready=True)

    return routes


def _model_paths(settings: Settings) -> list[tuple[str, list[Any]]]:
    """Returns the paths with and without a version, and the dependencies that check the names in them."""
    name, version = settings.model_name, settings.model_version

    async def known_model(model_name: Annotated[str, Path(json_schema_extra={"enum": [name]})]) -> None:
        if model_name != name:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no model {model_name[:100]!a}, only {name}")

    async def known_version(model_version: Annotated[str, Path(json_schema_extra={"enum": [version]})]) -> None:
        if model_version != version:
            found = f"There is no version {model_version[:100]!a} of {name}, only {version}"
            raise HTTPException(HTTPStatus.NOT_FOUND, found)

    model = "/models/{model_name}"
    return [
        (model, [Depends(known_model)]),
        (model + "/versions/{model_version}", [Depends(known_model), Depends(known_version)]),
    ]


def _add_model(routes: APIRouter, classifier: Classifier, lifecycle: Lifecycle, settings: Settings) -> None:
    labels = list(classifier.folder.labels)
    model = Model(
        name=settings.model_name,
        versions=[settings.model_version],
        platform="_".join((classifier.backend.name.split()[0], classifier.folder.file.suffix[1:])),
        inputs=[TensorFacts(name="text", datatype="BYTES", shape=[-1])],
        outputs=[
            TensorFacts(name=name, datatype=tensor.datatype, shape=[-1, *tensor.shape[1:]])
            for name, tensor in _tensors([], labels).items()
        ],
        parameters={"labels": labels},
    )

    @routes.get("", summary="Describe the inputs and outputs", responses=failures(404))
    async def v2_model() -> Model:
        return model

    @routes.get(
        "/ready", summary="Check that the model takes texts", response_model=ModelReady, responses=failures(404, 503)
    )
    async def v2_model_ready() -> ModelReady | Response:
        reason = lifecycle.not_ready_reason()
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, reason) if reason else ModelReady(name=model.name, ready=True)


def _add_infer(routes: APIRouter, classifier: Classifier, settings: Settings) -> None:
    text = Annotated[str, text_limits(settings), AfterValidator(visible_text)]
    texts_type = TypeAdapter[list[str]](Annotated[list[text], Field(min_length=1, max_length=settings.max_batch_texts)])
    labels = classifier.folder.labels
    json_length = Annotated[
        Annotated[int, Field(ge=1)] | SkipJsonSchema[None],
        Header(alias=JSON_LENGTH, description="Bytes of JSON; binary tensors follow."),
    ]
    content = {"application/json": {"schema": inline_schema(InferRequest)}} | _BINARY_CONTENT

    @routes.post(
        "/infer",
        summary="Classify texts",
        response_class=Response,
        responses={200: {"model": InferResponse, "content": _BINARY_CONTENT}, **failures(400, 404, 413, 429, 504)},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )
    async def v2_infer(request: Request, timeout_ms: TimeoutHeader = None, head: json_length = None) -> Response:
        try:
            wanted, texts = read_request(await request.body(), head)
            texts = texts_type.validate_python(texts)
        except ProtocolError as error:
            return problem(HTTPStatus.BAD_REQUEST, str(error))
        except ValidationError as error:
            return problem(HTTPStatus.BAD_REQUEST, explain(error, "inputs/0/data"))
        if timeout_ms is None and wanted.parameters.timeout:
            timeout_ms = max(1, wanted.parameters.timeout // 1000)
        seconds = settings.timeout_of(timeout_ms)
        answer = await while_connected(request, classifier, texts, timeout_seconds=seconds)
        facts = {"model_name": settings.model_name, "model_version": settings.model_version}
        facts |= {} if wanted.id is None else {"id": wanted.id}
        body, head_bytes = write_response(facts, _wanted_outputs(wanted, _tensors(answer.predictions, labels), labels))
        headers = {"Server-Timing": answer.server_timing()}
        headers |= {} if head_bytes is None else {JSON_LENGTH: str(head_bytes)}
        return Response(body, headers=headers, media_type="application/json" if head_bytes is None else _BINARY)


def _tensors(predictions: Sequence[Prediction], labels: Sequence[str]) -> dict[OutputName, Tensor]:
    count = len(predictions)
    probabilities = [one.probabilities[label] for one in predictions for label in labels]
    return {
        "label": Tensor("BYTES", (count,), [one.label for one in predictions]),
        "confidence": Tensor("FP32", (count,), [one.confidence for one in predictions]),
        "probabilities": Tensor("FP32", (count, len(labels)), probabilities),
        "truncated": Tensor("BOOL", (count,), [one.truncated for one in predictions]),
    }


def _wanted_outputs(
    request: InferRequest, tensors: Mapping[OutputName, Tensor], labels: Sequence[str]
) -> list[tuple[str, Tensor, bool]]:
    default = request.parameters.binary_data_output
    chosen: list[tuple[str, Tensor, bool]] = []
    for output in request.outputs or [OutputWanted(name=name) for name in tensors]:
        best, binary = output.parameters.classification, output.parameters.binary_data
        tensor = tensors[output.name] if best is None else best_classes(tensors[output.name], best, labels)
        chosen.append((output.name, tensor, default if binary is None else binary))
    return chosen


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documents for /docs the answers that are errors of the protocol."""
    return {int(status): {"model": Failure, "description": HTTPStatus(status).phrase} for status in statuses}


class OpenInferenceErrors:
    """Rewrites each problem under /v2 into the protocol's form, {"error": ...}."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None

        async def send_error(message: Message) -> None:
            nonlocal start
            problem_type = (b"content-type", MEDIA_TYPE.encode())
            if message["type"] == "http.response.start" and problem_type in message["headers"]:
                start = message
            elif start is not None:
                body = Failure(error=json.loads(message["body"])["detail"]).model_dump_json().encode()
                kept = [pair for pair in start["headers"] if pair[0] not in {b"content-type", b"content-length"}]
                length = (b"content-length", str(len(body)).encode())
                status = _STATUS.get(start["status"], start["status"])
                start["headers"] = [*kept, (b"content-type", b"application/json"), length]
                await send({**start, "status": status})
                await send({"type": "http.response.body", "body": body})
            else:
                await send(message)

        under_v2 = scope["type"] == "http" and (scope["path"] + "/").startswith("/v2/")
        await self._app(scope, receive, send_error if under_v2 else send)
