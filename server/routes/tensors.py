"""Tensors of the Open Inference Protocol v2, in JSON and in Triton's binary extension.

Binary data follows the JSON, whose length the header Inference-Header-Content-Length gives: little-endian, an element
of BYTES after its length in 4 bytes (docs/protocol/extension_binary_data.md of the Triton server).
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from pydantic_core import PydanticCustomError

JSON_LENGTH = "Inference-Header-Content-Length"
OutputName = Literal["label", "confidence", "probabilities", "truncated"]
_NUMBERS = {"FP32": "<f4", "BOOL": "?"}


class ProtocolError(ValueError):
    """A request does not follow the protocol; the message names the place and the fix."""


class _Part(BaseModel):
    # Other fields that a client adds are for other servers, as the protocol allows.
    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)


class InputParameters(_Part):
    binary_data_size: NonNegativeInt | None = Field(default=None, le=2**31)
    """Bytes of this tensor after the JSON, in place of data."""


class Input(_Part):
    name: Literal["text"]
    shape: list[NonNegativeInt] = Field(min_length=1, max_length=2, examples=[[1]])
    """[n], or [n, 1]."""
    datatype: Literal["BYTES"]
    parameters: InputParameters = InputParameters()
    data: list[Any] = Field(
        default=[],
        examples=[["Late goal sends the home side into the final"]],
        json_schema_extra={
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1},
                ]
            }
        },
    )
    """Texts, each in a list of its own or not."""


class OutputParameters(_Part):
    binary_data: bool | None = None
    """Send this output after the JSON."""
    classification: PositiveInt | None = Field(default=None, le=2**31)
    """Send so many of the best classes in place of probabilities, each as a string score:index:label."""


class OutputWanted(_Part):
    name: OutputName
    parameters: OutputParameters = OutputParameters()

    @model_validator(mode="after")
    def _classes_are_those_of_probabilities(self) -> Self:
        if self.parameters.classification is not None and self.name != "probabilities":
            raise PydanticCustomError("classification", "The parameter classification is only for probabilities")
        return self


class InferParameters(_Part):
    binary_data_output: bool = False
    """Send outputs after the JSON unless their own parameters differ."""
    timeout: NonNegativeInt | None = Field(default=None, le=3_600_000_000)
    """Microseconds that the request may take; 0 and none is what the server is set to."""


class InferRequest(_Part):
    id: str | None = Field(default=None, max_length=1000)
    """Id that comes back with the answer."""
    parameters: InferParameters = InferParameters()
    inputs: list[Input] = Field(min_length=1, max_length=1)
    outputs: list[OutputWanted] = Field(default=[], max_length=16)
    """Outputs to send; all if empty."""


class Output(BaseModel):
    name: OutputName
    datatype: Literal["BYTES", "FP32", "BOOL"]
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[str] | list[float] | list[bool] | None = None


class InferResponse(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Output]


@dataclass(frozen=True)
class Tensor:
    """Holds the values of an output, row after row."""

    datatype: Literal["BYTES", "FP32", "BOOL"]
    shape: tuple[int, ...]
    values: Sequence[Any]

    def binary(self) -> bytes:
        if self.datatype == "BYTES":
            return b"".join(struct.pack("<I", len(value)) + value for value in map(str.encode, self.values))
        return np.array(self.values, dtype=_NUMBERS[self.datatype]).tobytes()


def read_request(body: bytes, json_length: int | None) -> tuple[InferRequest, list[Any]]:
    """Parses a body into the request and its texts, which are not validated yet."""
    if json_length is not None and json_length > len(body):
        raise ProtocolError(f"{JSON_LENGTH}: {json_length} is more than the {len(body)} bytes of the body")
    head, tail = (body, b"") if json_length is None else (body[:json_length], body[json_length:])
    try:
        request = InferRequest.model_validate_json(head)
    except ValidationError as error:
        raise ProtocolError(explain(error)) from None
    text = request.inputs[0]
    size = text.parameters.binary_data_size
    if len(tail) != (size or 0):
        raise ProtocolError(
            f"{len(tail)} bytes follow the JSON, but inputs/0/parameters/binary_data_size is {size or 0}"
        )
    if size is not None and text.data:
        raise ProtocolError("inputs/0 has both data and binary_data_size: only one of them may be")
    texts = [_alone(element) for element in text.data] if size is None else _strings(tail)
    if text.shape[0] != len(texts) or text.shape[1:] not in ([], [1]):
        raise ProtocolError(
            f"inputs/0/shape is {text.shape}, but there are {len(texts)} texts: it should be [{len(texts)}]"
        )
    return request, texts


def best_classes(probabilities: Tensor, best: int, labels: Sequence[str]) -> Tensor:
    """Triton's classification extension: the best classes of each text as score:index:label."""
    count, classes = probabilities.shape
    best = min(best, classes)
    strings = []
    for row in range(count):
        scores = probabilities.values[row * classes : (row + 1) * classes]
        order = sorted(range(classes), key=scores.__getitem__, reverse=True)[:best]
        strings += [f"{scores[index]:f}:{index}:{labels[index]}" for index in order]
    return Tensor("BYTES", (count, best), strings)


def explain(error: ValidationError, within: str = "") -> str:
    """Describes the first fault with its place."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = "/".join([*([within] if within else []), *map(str, first["loc"])])
    return f"{place}: {first['msg']}" if place else f"The body is not what it should be: {first['msg']}"


def write_response(response: dict[str, Any], outputs: Sequence[tuple[str, Tensor, bool]]) -> tuple[bytes, int | None]:
    """Returns a body with outputs, each binary or not, and the length of its JSON if binary data follows."""
    described, tail = [], b""
    for name, tensor, binary in outputs:
        output: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            data = tensor.binary()
            tail += data
            output["parameters"] = {"binary_data_size": len(data)}
        else:
            output["data"] = tensor.values
        described.append(output)
    head = json.dumps(response | {"outputs": described}, ensure_ascii=False, separators=(",", ":")).encode()
    return head + tail, len(head) if any(binary for _, _, binary in outputs) else None


def _alone(element: object) -> object:
    return element[0] if isinstance(element, list) and len(element) == 1 else element


def _strings(data: bytes) -> list[str]:
    texts: list[str] = []
    place = 0
    while place < len(data):
        end = place + 4 + (struct.unpack_from("<I", data, place)[0] if place + 4 <= len(data) else len(data))
        if end > len(data):
            raise ProtocolError(f"the binary data of inputs/0 ends inside of text {len(texts)}")
        try:
            texts.append(data[place + 4 : end].decode())
        except UnicodeDecodeError:
            raise ProtocolError(f"the binary data of inputs/0: text {len(texts)} is not UTF-8") from None
        place = end
    return texts
