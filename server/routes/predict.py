"""POST /predict and /predict/batch: the types validate, the classifier computes, the types answer."""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, Field
from starlette.requests import ClientDisconnect

from server.http.problems import StrictModel, TimeoutHeader, problem_responses
from server.inference.classifier import VISIBLE, Answer, Classifier, Prediction, visible_text
from server.observability.logs import CURRENT
from server.settings import Settings

_EXAMPLE = "Late goal sends the home side into the final"
_PROBLEMS = problem_responses(
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.GATEWAY_TIMEOUT,
)


def router(classifier: Classifier, settings: Settings) -> APIRouter:
    routes = APIRouter()
    limits = text_limits(settings)

    class OneText(StrictModel):
        text: Annotated[str, limits, AfterValidator(visible_text)]
        """Text to classify."""

    class Texts(StrictModel):
        texts: Annotated[
            list[Annotated[str, limits, AfterValidator(visible_text)]],
            Field(min_length=1, max_length=settings.max_batch_texts, examples=[[_EXAMPLE, "Shares fell again"]]),
        ]
        """Texts to classify."""

    @routes.post("/predict", summary="Classify a text", responses=_PROBLEMS)
    async def predict(
        body: OneText, request: Request, response: Response, timeout_ms: TimeoutHeader = None
    ) -> Prediction:
        seconds = settings.timeout_of(timeout_ms)
        answer = await while_connected(request, classifier, [body.text], timeout_seconds=seconds)
        response.headers["Server-Timing"] = answer.server_timing()
        return answer.predictions[0]

    @routes.post(
        "/predict/batch",
        summary="Classify several texts; the answers come in their order",
        responses=_PROBLEMS,
    )
    async def predict_batch(
        body: Texts, request: Request, response: Response, timeout_ms: TimeoutHeader = None
    ) -> list[Prediction]:
        seconds = settings.timeout_of(timeout_ms)
        answer = await while_connected(request, classifier, body.texts, timeout_seconds=seconds)
        response.headers["Server-Timing"] = answer.server_timing()
        return answer.predictions

    return routes


def text_limits(settings: Settings) -> Any:  # noqa: ANN401 - as pydantic types a field
    return Field(
        min_length=1,
        max_length=settings.max_text_characters,
        examples=[_EXAMPLE],
        json_schema_extra={"pattern": VISIBLE},
    )


async def while_connected(
    request: Request, classifier: Classifier, texts: Sequence[str], *, timeout_seconds: float
) -> Answer:
    """Classifies texts; raises ClientDisconnect if the client hangs up, and then computes nothing more for it."""
    record = CURRENT.get()
    record.texts = texts
    task, waiting = asyncio.current_task(), True

    def cancel(hung_up: "asyncio.Task[None]") -> None:
        if task and waiting and not hung_up.cancelled():
            task.cancel()

    # Not asyncio.wait on two tasks: the traceback of an error would keep the texts until the next garbage collection.
    hung_up = asyncio.ensure_future(_hung_up(request))
    hung_up.add_done_callback(cancel)
    try:
        record.answer = await classifier.classify(texts, timeout_seconds=timeout_seconds)
    except asyncio.CancelledError:
        if task and hung_up.done() and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        waiting = False
        hung_up.cancel()
    return record.answer


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
