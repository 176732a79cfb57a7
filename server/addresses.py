"""Origins, networks and URLs as settings name them, several with commas between."""

import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:.]+\](:\d{1,5})?")


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value != "*" and not _ORIGIN.fullmatch(value):
            raise ValueError(
                f"{value!r} is no origin, such as https://news.example or http://localhost:3000, in small letters and without a path"
            )
    return values


def _named_origins(values: tuple[str, ...]) -> tuple[str, ...]:
    if "*" in values:
        raise ValueError("origins are named one by one here, such as https://huggingface.co")
    return _origins(values)


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ipaddress.ip_network(value)
        except ValueError:
            raise ValueError(f"{value!r} is no address or network, such as 10.0.0.7 or 10.0.0.0/8") from None
    return values


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError("should be a URL, such as https://accounts.example/realms/news")
    return value


Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_origins)]
NamedOrigins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_named_origins)]
Networks = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_networks)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
