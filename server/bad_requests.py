"""What a client is told that sent something wrong: where, and what would be right. Never what it sent: that may not be encodable."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_FAULTS = 16
_EXPECTED = 'a JSON object such as {"text": "..."}, or {"texts": ["...", "..."]} for a batch, in UTF-8 with the header Content-Type: application/json'


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


def readable(text: str) -> str:
    """The text, unless it holds nothing that could be classified."""
    if "\0" in text:
        raise PydanticCustomError("text_nul", "Text should have no NUL character (\\u0000)")
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise PydanticCustomError("text_blank", "Text should have a visible character")
    return text


def explain_bad_requests(app: FastAPI, *, max_body_bytes: int) -> None:
    """Answer every malformed request with a 4xx that says what would be right."""
    app.add_middleware(_limit_body, max_body_bytes=max_body_bytes)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPStatus.BAD_REQUEST)(_unreadable)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    detail = [_describe(fault) for fault in error.errors()[:_MAX_FAULTS]]
    return JSONResponse({"detail": detail}, status_code=HTTPStatus.UNPROCESSABLE_ENTITY)


def _describe(fault: Mapping[str, Any]) -> dict[str, object]:
    match fault["type"], fault["loc"]:
        case "json_invalid", _:
            message = f"The body is not JSON ({fault['ctx']['error']}); it should be {_EXPECTED}"
        case "missing" | "model_attributes_type", ("body",):
            message = f"The body should be {_EXPECTED}"
        case "string_unicode", _:
            message = "String should be valid Unicode; \\ud800 to \\udfff stand for a character only in pairs"
        case _:
            message = fault["msg"]
    return {"type": fault["type"], "loc": fault["loc"], "msg": message}


async def _unreadable(_: Request, __: HTTPException) -> JSONResponse:
    fault = {"type": "body_unreadable", "loc": ["body"], "msg": f"The body cannot be read; it should be {_EXPECTED}"}
    return JSONResponse({"detail": [fault]}, status_code=HTTPStatus.BAD_REQUEST)


def _limit_body(app: ASGIApp, max_body_bytes: int) -> ASGIApp:
    """Stop reading a body that no valid request can have, before it fills the memory."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_body_bytes:
                right = f"The body should have at most {max_body_bytes} bytes"
                fault = {"type": "body_too_long", "loc": ["body"], "msg": right}
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, [fault])
            return message

        await app(scope, counted, send)

    return limited
