"""Answers each error with a problem as in RFC 9457: the fault, its place and the fix.

A problem never repeats what the client sent: that may not be encodable.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.errors import DeadlineExceededError, QueueFullError
from server.observability.logs import CURRENT

MEDIA_TYPE = "application/problem+json"
CLIENT_LEFT = 499  # as nginx logs it; nobody reads this answer
_MAX_FAULTS = 16
_EXPECTED = 'a JSON object such as {"text": "..."}, or {"texts": ["...", "..."]} for a batch, in UTF-8 with the header Content-Type: application/json'

TimeoutHeader = Annotated[
    Annotated[int, Field(ge=1, le=3_600_000)] | SkipJsonSchema[None],  # it may be missing, but not null
    Header(alias="X-Request-Timeout-Ms", description="Milliseconds that the request may take."),
]


class Fault(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    place: str = Field(examples=["body/text"])
    """Place in the request."""
    detail: str = Field(examples=["String should have at least 1 character"])
    """Description of the fault and of a right value."""


class Problem(BaseModel):
    """Describes an error as in RFC 9457."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = Field(default="about:blank", examples=["about:blank"])
    title: str = Field(examples=["Unprocessable Content"])
    """Meaning of the status."""
    status: int = Field(examples=[422])
    detail: str
    """The fault and the fix."""
    errors: list[Fault] = []
    """Every fault of the request."""
    request_id: str | None = None
    """Id of the request, also in the header X-Request-ID of the answer and in the server's log."""


class StrictModel(BaseModel):
    """Refuses a body with a field that is not declared."""

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


def inline_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Returns a model's JSON schema without references, which OpenAPI would resolve in the whole document."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def inlined(node: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(node, dict):
            part = parts[node["$ref"].rpartition("/")[2]] if "$ref" in node else {}
            return {key: inlined(value) for key, value in (part | node).items() if key != "$ref"}
        return [inlined(item) for item in node] if isinstance(node, list) else node

    expanded: dict[str, Any] = inlined(schema)
    return expanded


def problem_responses(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Documents for /docs the answers that are problems."""
    return {
        int(status): {
            "description": status.description or status.phrase,
            "content": {MEDIA_TYPE: {"schema": inline_schema(Problem)}},
        }
        for status in statuses
    }


def problem(
    status: HTTPStatus, detail: str, *, errors: Sequence[Fault] = (), headers: Mapping[str, str] | None = None
) -> JSONResponse:
    record = CURRENT.get(None)
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
            message = "String should be valid Unicode; \\ud800 to \\udfff encode a character only in pairs"
        case _:
            message = fault["msg"]
    return Fault(place="/".join(map(str, fault["loc"])), detail=message)


async def _refused(_: Request, error: HTTPException) -> JSONResponse:
    status = HTTPStatus(error.status_code)
    detail = f"The body cannot be read; it should be {_EXPECTED}" if status == HTTPStatus.BAD_REQUEST else error.detail
    return problem(status, detail, headers=error.headers)


async def _queue_full(_: Request, error: QueueFullError) -> JSONResponse:
    CURRENT.get().rejected = "queue_full"
    headers = {"Retry-After": str(error.retry_after_seconds)}
    detail = f"The queue is full: {error}; try again in {error.retry_after_seconds} s"
    return problem(HTTPStatus.TOO_MANY_REQUESTS, detail, headers=headers)


async def _deadline_exceeded(_: Request, error: DeadlineExceededError) -> JSONResponse:
    detail = f"{error}; the header X-Request-Timeout-Ms sets the time that a request may take"
    return problem(HTTPStatus.GATEWAY_TIMEOUT, detail)


async def _client_left(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


# Any: Starlette's type would want handlers of every Exception.
PROBLEM_HANDLERS: dict[Any, Any] = {
    RequestValidationError: _invalid,
    HTTPException: _refused,
    QueueFullError: _queue_full,
    DeadlineExceededError: _deadline_exceeded,
    ClientDisconnect: _client_left,
}
