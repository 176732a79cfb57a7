"""The application: its middleware and its routes, each as one ordered list."""

from collections.abc import Callable, Sequence
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from server.http.auth import Auth
from server.http.lifecycle import Lifecycle
from server.http.middleware import CloseWhenDraining, HeadAsGet, LimitBody, RequestContext, ServerFailure
from server.http.problems import PROBLEM_HANDLERS, problem_responses
from server.inference.classifier import Classifier
from server.observability.logs import RequestRecord, request_log
from server.observability.metrics import Metrics
from server.routes import health, open_inference, pages, predict
from server.settings import Settings

_TITLE = "DistriNews"
_ALLOW_HEADERS = ("X-API-Key", "Authorization", "X-Request-Timeout-Ms", "X-Request-ID", "traceparent", "tracestate")
_EXPOSE_HEADERS = ("Retry-After", "Server-Timing", "WWW-Authenticate", "X-Request-ID")


def create_app(
    classifier: Classifier,
    lifecycle: Lifecycle,
    settings: Settings,
    auth: Auth,
    *,
    on_request_end: Sequence[Callable[[RequestRecord], None]] = (),
) -> FastAPI:
    """Creates the API over a classifier. A request passes the middleware from the first line to the last."""
    metrics = Metrics(classifier, lifecycle, settings)
    # The log last: a span may give the record its trace.
    listeners = [metrics.request_ended, *on_request_end, request_log(texts=settings.log_texts)]
    app = FastAPI(
        title=_TITLE,
        version=version("distrinews"),
        description=f"Classifies short texts as one of: {', '.join(classifier.folder.labels)}.",
        docs_url=None,  # its page loads scripts from elsewhere, like that of ReDoc
        redoc_url=None,
        exception_handlers=PROBLEM_HANDLERS,
        middleware=[
            Middleware(RequestContext, on_start=metrics.request_started, on_end=listeners),
            Middleware(open_inference.OpenInferenceErrors),
            Middleware(ServerFailure),
            Middleware(HeadAsGet),
            Middleware(CloseWhenDraining, lifecycle=lifecycle),
            *_cors(
                settings
            ),  # before authentication: a preflight has no key, and a page has to be able to read a refusal
            *auth.middleware(),  # before the body, which FastAPI reads before any dependency
            Middleware(LimitBody, max_bytes=settings.max_body_bytes),
        ],
    )
    needs, refusals = auth.dependencies(), auth.refusals()
    app.include_router(predict.router(classifier, settings), dependencies=needs, responses=problem_responses(*refusals))
    app.include_router(
        open_inference.router(classifier, lifecycle, settings),
        dependencies=needs,
        responses=open_inference.failures(*refusals),
    )
    app.include_router(open_inference.health_router(lifecycle))
    app.include_router(health.router(classifier, lifecycle, settings))
    app.include_router(pages.router(settings, title=_TITLE))
    app.state.metrics = metrics
    return app


def _cors(settings: Settings) -> list[Middleware]:
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=_ALLOW_HEADERS,
            expose_headers=_EXPOSE_HEADERS,
        )
    ]
