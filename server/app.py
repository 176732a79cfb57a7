"""The routes. Types validate, the classifier works, types answer."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from server.errors import QueueFullError
from server.http.auth import guard
from server.http.http_protocol import answer_head
from server.http.middleware import Watched
from server.http.problems import (
    CLIENT_LEFT,
    StrictModel,
    TimeoutHeader,
    documented,
    explain_problems,
    problem,
)
from server.inference.classifier import VISIBLE, Answer, Classifier, Prediction, visible_text
from server.lifecycle import Lifecycle, close_connections_when_draining
from server.observability.logs import request_log
from server.observability.metrics import Metrics
from server.observability.record import Record, note
from server.routes.open_inference import Ask, add_open_inference
from server.routes.pages import add_docs
from server.routes.ui import add_ui
from server.settings import Settings

_BYTES_PER_CHARACTER = 12  # of JSON at most: an escaped surrogate pair, such as \ud83d\ude00
_EXAMPLE = "Late goal sends the home side into the final"
_PROBLEMS = documented(
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_NOT_READY = documented(HTTPStatus.SERVICE_UNAVAILABLE)


class Health(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    status: Literal["healthy"] = "healthy"
    model_loaded: Literal[True] = True
    version: str = Field(examples=["0.1.0"])
    """Of the server."""
    engine: str = Field(examples=["onnxruntime 1.22.0"])
    """What runs the model."""
    variant: str = Field(examples=["int8"])
    """Which of the folder's models is served."""
    sha256: str = Field(examples=["5d41402abc4b2a76b9719d911017c592ae41e4649b934ca495991b7852b855a8"])
    """Of the model folder's manifest: the same on every server with this model."""
    labels: list[str] = Field(examples=[["World", "Sports", "Business"]])
    """The classes."""
    max_length: int = Field(examples=[128])
    """Tokens of a text that the model reads."""
    workers: int = Field(examples=[2])
    """Batches computed at the same time."""
    max_text_characters: int = Field(examples=[10_000])
    """Characters of a text at most."""
    max_batch_texts: int = Field(examples=[64])
    """Texts of one request at most."""


def create_app(
    classifier: Classifier, lifecycle: Lifecycle, settings: Settings, *, tell: Iterable[Callable[[Record], None]] = ()
) -> FastAPI:
    """The API over a classifier, with the limits that the settings give; `tell` hears of every request that is over."""
    app = FastAPI(
        title="DistriNews",
        version=version("distrinews"),
        description=f"Classifies short texts as one of: {', '.join(classifier.folder.labels)}.",
        docs_url=None,  # its page loads scripts from elsewhere, as the other one does
        redoc_url=None,
    )
    max_characters = settings.max_batch_texts * settings.max_text_characters
    explain_problems(app, max_body_bytes=_BYTES_PER_CHARACTER * max_characters + 4096)
    guard(app, settings)
    app.add_middleware(close_connections_when_draining, lifecycle=lifecycle)
    app.add_middleware(answer_head)
    app.state.metrics = Metrics(classifier, lifecycle, settings, version=app.version)
    ask = _add_predictions(app, classifier, settings)
    add_open_inference(app, ask, classifier, lifecycle, settings)
    _add_service_routes(app, classifier, settings)
    _add_probes(app, lifecycle)
    add_docs(app, frame_origins=settings.frame_origins)
    add_ui(app, frame_origins=settings.frame_origins)
    tell = [*tell, request_log(texts=settings.log_texts)]  # the log last: it says which trace was begun
    app.add_middleware(Watched, routes=app.routes, metrics=app.state.metrics, tell=tell)  # the outermost comes last
    return app


def _add_predictions(app: FastAPI, classifier: Classifier, settings: Settings) -> Ask:
    limit = Field(
        min_length=1,
        max_length=settings.max_text_characters,
        examples=[_EXAMPLE],
        json_schema_extra={"pattern": VISIBLE},
    )

    class OneText(StrictModel):
        text: Annotated[str, limit, AfterValidator(visible_text)]
        """The text to classify."""

    class Texts(StrictModel):
        texts: Annotated[
            list[Annotated[str, limit, AfterValidator(visible_text)]],
            Field(min_length=1, max_length=settings.max_batch_texts, examples=[[_EXAMPLE, "Shares fell again"]]),
        ]
        """The texts to classify."""

    async def answer(
        request: Request, response: Response, texts: Sequence[str], timeout_ms: int | None
    ) -> Answer | None:
        seconds = settings.timeout_seconds if timeout_ms is None else timeout_ms / 1000
        done = await _unless_left(request, classifier, texts, timeout_seconds=seconds)
        if done:
            response.headers["Server-Timing"] = done.server_timing()
        return done

    @app.post("/predict", summary="Classify a text", responses=_PROBLEMS, response_model=Prediction)
    async def predict(
        body: OneText, request: Request, response: Response, timeout_ms: TimeoutHeader = None
    ) -> Prediction | Response:
        done = await answer(request, response, [body.text], timeout_ms)
        return done.predictions[0] if done else Response(status_code=CLIENT_LEFT)

    @app.post(
        "/predict/batch",
        summary="Classify several texts; the answers come in their order",
        responses=_PROBLEMS,
        response_model=list[Prediction],
    )
    async def predict_batch(
        body: Texts, request: Request, response: Response, timeout_ms: TimeoutHeader = None
    ) -> list[Prediction] | Response:
        done = await answer(request, response, body.texts, timeout_ms)
        return done.predictions if done else Response(status_code=CLIENT_LEFT)

    return answer


async def _unless_left(
    request: Request, classifier: Classifier, texts: Sequence[str], *, timeout_seconds: float
) -> Answer | None:
    """The answers; None when the client hangs up before, and then nothing more is computed for it."""
    note(texts=texts)
    asking, waiting = asyncio.current_task(), True

    def stop_waiting(left: "asyncio.Task[None]") -> None:
        if asking and waiting and not left.cancelled():
            asking.cancel()

    left = asyncio.ensure_future(_hung_up(request))
    left.add_done_callback(stop_waiting)
    try:
        answered = await classifier.classify(texts, timeout_seconds=timeout_seconds)
    except QueueFullError:
        note(rejected="queue_full")
        raise
    except asyncio.CancelledError:
        if asking and left.done() and not asking.uncancel():
            return None
        raise
    finally:
        waiting = False
        left.cancel()
    note(answered=answered)
    return answered


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_service_routes(app: FastAPI, classifier: Classifier, settings: Settings) -> None:
    health_now = Health(
        version=app.version,
        engine=classifier.backend.name,
        variant=classifier.folder.variant,
        sha256=classifier.folder.sha256,
        labels=list(classifier.folder.labels),
        max_length=classifier.folder.max_length,
        workers=classifier.workers,
        max_text_characters=settings.max_text_characters,
        max_batch_texts=settings.max_batch_texts,
    )

    @app.get("/health", summary="Whether the server can answer, and with which model")
    async def health() -> Health:
        return health_now


def _add_probes(app: FastAPI, lifecycle: Lifecycle) -> None:
    @app.get("/livez", summary="Whether the server moves: if not, restart it", responses=_NOT_READY)
    async def livez() -> Response:
        return _probe(lifecycle.not_alive_reason())

    @app.get("/readyz", summary="Whether to send requests to this server", responses=_NOT_READY)
    async def readyz() -> Response:
        return _probe(lifecycle.not_ready_reason())


def _probe(reason: str | None) -> Response:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, reason) if reason else JSONResponse({"status": "ok"})
