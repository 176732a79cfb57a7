"""GET /health, and the probes /livez and /readyz."""

from http import HTTPStatus
from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from server.http.lifecycle import Lifecycle
from server.http.problems import problem, problem_responses
from server.inference.classifier import Classifier
from server.settings import Settings

_NOT_READY = problem_responses(HTTPStatus.SERVICE_UNAVAILABLE)


class Health(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    status: Literal["healthy"] = "healthy"
    model_loaded: Literal[True] = True
    version: str = Field(examples=["0.1.0"])
    """Version of the server."""
    engine: str = Field(examples=["onnxruntime 1.22.0"])
    """Library that runs the model."""
    variant: str = Field(examples=["int8"])
    """Variant of the folder's model that is served."""
    sha256: str = Field(examples=["5d41402abc4b2a76b9719d911017c592ae41e4649b934ca495991b7852b855a8"])
    """SHA-256 of the model folder's manifest: the same on every server with this model."""
    labels: list[str] = Field(examples=[["World", "Sports", "Business"]])
    """Classes."""
    text_columns: list[str] = Field(examples=[["title", "description"]])
    """Columns of the training rows that make the text, or their numbers; none where they are unknown."""
    max_length: int = Field(examples=[128])
    """Tokens of a text that the model reads."""
    workers: int = Field(examples=[2])
    """Batches computed at the same time."""
    max_text_characters: int = Field(examples=[10_000])
    """Most characters of a text."""
    max_batch_texts: int = Field(examples=[64])
    """Most texts of one request."""


def router(classifier: Classifier, lifecycle: Lifecycle, settings: Settings) -> APIRouter:
    routes = APIRouter()
    healthy = Health(
        version=version("distrinews"),
        engine=classifier.backend.name,
        variant=classifier.folder.variant,
        sha256=classifier.folder.sha256,
        labels=list(classifier.folder.labels),
        text_columns=list(classifier.folder.text_columns),
        max_length=classifier.folder.max_length,
        workers=classifier.workers,
        max_text_characters=settings.max_text_characters,
        max_batch_texts=settings.max_batch_texts,
    )

    @routes.get("/health", summary="Describe the server and its model")
    async def health() -> Health:
        return healthy

    @routes.get("/livez", summary="Check that the server works: restart it if not", responses=_NOT_READY)
    async def livez() -> Response:
        return _probe(lifecycle.not_alive_reason())

    @routes.get("/readyz", summary="Check that the server takes requests", responses=_NOT_READY)
    async def readyz() -> Response:
        return _probe(lifecycle.not_ready_reason())

    return routes


def _probe(reason: str | None) -> Response:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, reason) if reason else JSONResponse({"status": "ok"})
