"""The routes. Types validate, the classifier works, types answer."""

from importlib.metadata import version
from typing import Annotated, Literal

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from server.bad_requests import StrictModel, explain_bad_requests, readable
from server.classifier import Classifier, Prediction
from server.settings import Settings

_BYTES_PER_CHARACTER = 12  # of JSON at most: an escaped surrogate pair, such as \ud83d\ude00
_EXAMPLE = "Late goal sends the home side into the final"


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
    labels: list[str] = Field(examples=[["World", "Sports", "Business"]])
    """The classes."""
    max_length: int = Field(examples=[128])
    """Tokens of a text that the model reads."""
    workers: int = Field(examples=[2])
    """Texts classified at the same time."""


def create_app(classifier: Classifier, settings: Settings) -> FastAPI:
    """The API over a classifier, with the limits that the settings give."""
    app = FastAPI(
        title="DistriNews",
        version=version("distrinews"),
        description=f"Classifies short texts as one of: {', '.join(classifier.folder.labels)}.",
    )
    max_characters = settings.max_batch_texts * settings.max_text_characters
    explain_bad_requests(app, max_body_bytes=_BYTES_PER_CHARACTER * max_characters + 4096)
    _add_predictions(app, classifier, settings)
    _add_service_routes(app, classifier)
    return app


def _add_predictions(app: FastAPI, classifier: Classifier, settings: Settings) -> None:
    limit = Field(min_length=1, max_length=settings.max_text_characters, examples=[_EXAMPLE])

    class OneText(StrictModel):
        text: Annotated[str, limit, AfterValidator(readable)]
        """The text to classify."""

    class Texts(StrictModel):
        texts: Annotated[
            list[Annotated[str, limit, AfterValidator(readable)]],
            Field(min_length=1, max_length=settings.max_batch_texts, examples=[[_EXAMPLE, "Shares fell again"]]),
        ]
        """The texts to classify."""

    @app.post("/predict", summary="Classify a text")
    async def predict(body: OneText) -> Prediction:
        return await classifier.predict(body.text)

    @app.post("/predict/batch", summary="Classify several texts; the answers come in their order")
    async def predict_batch(body: Texts) -> list[Prediction]:
        return await classifier.predict_batch(body.texts)


def _add_service_routes(app: FastAPI, classifier: Classifier) -> None:
    health_now = Health(
        version=app.version,
        engine=classifier.engine.name,
        variant=classifier.folder.variant,
        labels=list(classifier.folder.labels),
        max_length=classifier.folder.max_length,
        workers=classifier.workers,
    )

    @app.get("/health", summary="Whether the server can answer, and with which model")
    async def health() -> Health:
        return health_now

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")
