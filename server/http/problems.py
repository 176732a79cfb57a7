"""What a client is told that gets no answer, as RFC 9457 says: what is wrong, where, and what would be right.

Never what it sent: that may not be encodable.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import DeadlineExceededError, QueueFullError
from server.observability.record import CURRENT

MEDIA_TYPE = "application/problem+json"
CLIENT_LEFT = 499  # as nginx logs it; nobody reads this answer
_MAX_FAULTS = 16
_EXPECTED = 'a JSON object such as {"text": "..."}, or {"texts": ["...", "..."]} for a batch, in UTF-8 with the header Content-Type: application/json'

TimeoutHeader = Annotated[
    Annotated[int, Field(ge=1, le=3_600_000)] | SkipJsonSchema[None],  # it may be missing, but not null
    Header(alias="X-Request-Timeout-Ms", description="Milliseconds that the request may take."),
]


class IssuerSilentError(Exception):
    """A token cannot be checked: the issuer's keys cannot be had."""


class Fault(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    place: str = Field(examples=["body/text"])
    """Where in the request."""
    detail: str = Field(examples=["String should have at least 1 character"])
    """What would be right."""


class Problem(BaseModel):
    """Why there is no answer (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = Field(default="about:blank", examples=["about:blank"])
    title: str = Field(examples=["Unprocessable Content"])
    """The meaning of the status."""
    status: int = Field(examples=[422])
    detail: str
    """What is wrong, and what would be right."""
    errors: list[Fault] = []
    """Each fault of the request."""
    request_id: str | None = None
    """As the header X-Request-ID of the answer has it, and the server's log."""


class StrictModel(BaseModel):
    """A body with no field but those declared."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _no_other_field(cls, data: object) -> object:
        # The first is enough: pydantic would report each of the half million that a body has room for, for seconds.
        other = next((name for name in data if name not in cls.model_fields), None) if isinstance(data, dict) else None
        if other is not None:
            facts = {"other": ascii(other[:100]), "fields": ", ".join(cls.model_fields)}
            raise PydanticCustomError("unknown_field", "There is no field {other}, only {fields}", facts)
        return data


def in_one_piece(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model for OpenAPI: what a schema refers to would be looked for in the whole document."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(node, dict):
            part = parts[node["$ref"].rpartition("/")[2]] if "$ref" in node else {}
            return {key: whole(value) for key, value in (part | node).items() if key != "$ref"}
        return [whole(item) for item in node] if isinstance(node, list) else node

    expanded: dict[str, Any] = whole(schema)
    return expanded


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """What /docs says of answers that are problems."""
    return {
        int(status): {
            "description": status.description or status.phrase,
            "content": {MEDIA_TYPE: {"schema": in_one_piece(Problem)}},
        }
        for status in statuses
    }


def explain_problems(app: FastAPI, *, max_body_bytes: int) -> None:
    """Answer every request that gets no answer with a problem that says what would be right."""
    app.add_middleware(_limit_body, max_body_bytes=max_body_bytes)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_refused)
    app.exception_handler(QueueFullError)(_full)
    app.exception_handler(DeadlineExceededError)(_late)
    app.exception_handler(ClientDisconnect)(_left)


def problem(
    status: HTTPStatus, detail: str, *, errors: Sequence[Fault] = (), headers: Mapping[str, str] | None = None
) -> JSONResponse:
    record = CURRENT.get()
    request_id = record.request_id if record else None
    body = Problem(title=status.phrase, status=status, detail=detail, errors=list(errors), request_id=request_id)
    return JSONResponse(body.model_dump(), status_code=status, headers=headers, media_type=MEDIA_TYPE)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    faults = [_describe(fault) for fault in error.errors()[:_MAX_FAULTS]]
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{faults[0].place}: {faults[0].detail}", errors=faults)


def _describe(fault: Mapping[str, Any]) -> Fault:
    match fault["type"], fault["loc"]:
        case "json_invalid", _:
            message = f"The body is not JSON ({fault['ctx']['error']}); it should be {_EXPECTED}"
        case "missing" | "model_attributes_type", ("body",):
            message = f"The body should be {_EXPECTED}"
        case "string_unicode", _:
            message = "String should be valid Unicode; \\ud800 to \\udfff stand for a character only in pairs"
        case _:
            message = fault["msg"]
    return Fault(place="/".join(map(str, fault["loc"])), detail=message)


async def _refused(_: Request, error: HTTPException) -> JSONResponse:
    status = HTTPStatus(error.status_code)
    detail = f"The body cannot be read; it should be {_EXPECTED}" if status == HTTPStatus.BAD_REQUEST else error.detail
    return problem(status, detail, headers=error.headers)


async def _full(_: Request, error: QueueFullError) -> JSONResponse:
    headers = {"Retry-After": str(error.retry_after_seconds)}
    detail = f"The queue is full: {error}; try again in {error.retry_after_seconds} s"
    return problem(HTTPStatus.TOO_MANY_REQUESTS, detail, headers=headers)


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _late(_: Request, error: DeadlineExceededError) -> JSONResponse:
    return problem(
        HTTPStatus.GATEWAY_TIMEOUT, f"{error}; the header X-Request-Timeout-Ms sets the time that a request may take"
    )


def _limit_body(app: ASGIApp, max_body_bytes: int) -> ASGIApp:
    """Stop reading a body that no valid request can have, before it fills the memory."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        declared = next((value for name, value in scope.get("headers", ()) if name == b"content-length"), b"")
        received = int(declared) if declared.isdigit() and int(declared) > max_body_bytes else 0

        async def counted() -> Message:
            nonlocal received
            message: Message = {} if received > max_body_bytes else await receive()
            received += len(message.get("body", b""))
            if received > max_body_bytes:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body should have at most {max_body_bytes} bytes"
                )
            return message

        await app(scope, counted, send)

    return limited
