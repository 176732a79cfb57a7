"""Who may call: every route is guarded, except those that are open. Nothing is installed that no setting asks for."""

import ipaddress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.api_keys import ApiKeys, parse_api_keys
from server.http.problems import IssuerSilentError, documented, problem
from server.settings import Settings

if TYPE_CHECKING:  # imported when they are asked for: PyJWT is an extra
    from server.http.oidc import Tokens
    from server.http.rate_limit import RateLimit

# What computes nothing: probes, and pages with what they load. A new route is guarded until it is named here.
_OPEN = frozenset({"/", "/livez", "/readyz", "/health", "/docs", "/openapi.json", "/ui"})
_OPEN_BELOW = ("/docs/", "/ui/", "/v2/health/")
_V2_FAILURE = {
    "application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}
}  # as server.routes.open_inference tells problems
_ALLOW_HEADERS = ("X-API-Key", "Authorization", "X-Request-Timeout-Ms", "X-Request-ID", "traceparent", "tracestate")
_EXPOSE_HEADERS = ("Retry-After", "Server-Timing", "WWW-Authenticate", "X-Request-ID")


def is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_BELOW)


def guard(app: FastAPI, settings: Settings) -> None:
    """Ask for keys or tokens, count requests and answer other origins, as far as the settings say."""
    keys, tokens, rate = _api_keys(settings), _tokens(settings), _rate(settings)
    if keys or tokens or rate:
        app.add_middleware(_Guard, keys=keys, tokens=tokens, rate=rate)
        _document(app, keys=keys is not None, tokens=tokens is not None)
    if settings.cors_origins:  # outside: a browser asks first without a key, and has to be able to read a refusal
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=_ALLOW_HEADERS,
            expose_headers=_EXPOSE_HEADERS,
        )


def _api_keys(settings: Settings) -> ApiKeys | None:
    if settings.api_keys_file:
        return ApiKeys.of_file(settings.api_keys_file)
    lines = settings.api_keys
    return ApiKeys(parse_api_keys(lines.get_secret_value(), where="DISTRINEWS_API_KEYS")) if lines else None


def _tokens(settings: Settings) -> "Tokens | None":
    if not settings.oidc_issuer or not settings.oidc_audience:
        return None
    from server.http.oidc import Tokens

    return Tokens(issuer=settings.oidc_issuer, audience=settings.oidc_audience, jwks_url=settings.oidc_jwks_url)


def _rate(settings: Settings) -> "RateLimit | None":
    if not settings.rate_limit:
        return None
    from server.http.rate_limit import RateLimit

    return RateLimit(settings.rate_limit)


class _Guard:
    """Decides before the body is read; puts the caller's name, or None, into `request.state.caller`."""

    def __init__(
        self, app: ASGIApp, *, keys: ApiKeys | None, tokens: "Tokens | None", rate: "RateLimit | None"
    ) -> None:
        self._app, self._keys, self._tokens, self._rate = app, keys, tokens, rate
        ways = ["a key in the header X-API-Key"] * bool(keys) + ["a token as Authorization: Bearer"] * bool(tokens)
        self._asked_for = " or ".join(ways)
        challenges = ['ApiKey realm="distrinews"'] * bool(keys) + ['Bearer realm="distrinews"'] * bool(tokens)
        self._challenge = ", ".join(challenges)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_to_all = scope["type"] != "http" or is_open(scope["path"])
        refusal = None if open_to_all else await self._refusal(scope)
        await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Response | None:
        try:
            caller = await self._caller(Headers(scope=scope))
        except IssuerSilentError:
            detail = "The token cannot be checked now: the issuer's keys cannot be had; try again later"
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "10"})
        scope.setdefault("state", {})["caller"] = caller[1] if caller else None
        # Whoever is refused is counted too, by address.
        if self._rate and (seconds := self._rate.seconds_to_wait(*(caller or ("address", _address(scope))))):
            detail = f"This caller makes too many requests; try again in {seconds} s"
            return problem(HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": str(seconds)})
        if caller is None and self._asked_for:
            # The same for all that could be wrong: what is absent, unknown, expired or for others is nobody's to learn.
            headers = {"WWW-Authenticate": self._challenge}
            return problem(HTTPStatus.UNAUTHORIZED, f"This needs {self._asked_for}, and a valid one", headers=headers)
        return None

    async def _caller(self, headers: Headers) -> tuple[str, str] | None:
        """What the caller showed, a key or a token, and whose it is."""
        if self._keys and (key := headers.get("x-api-key")) and (name := self._keys.name_of(key.encode("latin-1"))):
            return "key", name
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if self._tokens and scheme.lower() == "bearer" and (subject := await self._tokens.subject_of(token.strip())):
            return "token", subject
        return None


def _address(scope: Scope) -> str:
    """Of the client; of IPv6 the network of 64 bits, of which one client has all addresses."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a socket file, or what a trusted proxy wrote
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


def _document(app: FastAPI, *, keys: bool, tokens: bool) -> None:
    """Say in OpenAPI what a call needs, and which answers it may get for want of it."""
    schemes: dict[str, Any] = {}
    if keys:
        schemes["key"] = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    if tokens:
        schemes["token"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    statuses = [HTTPStatus.UNAUTHORIZED] * bool(schemes) + [HTTPStatus.SERVICE_UNAVAILABLE] * tokens
    refusals = documented(*statuses, HTTPStatus.TOO_MANY_REQUESTS)
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = plain()
        if schemes:
            document.setdefault("components", {})["securitySchemes"] = schemes
        guarded = ((path, item) for path, item in document["paths"].items() if not is_open(path))
        for path, operation in ((path, operation) for path, item in guarded for operation in item.values()):
            if schemes:
                operation["security"] = [{scheme: []} for scheme in schemes]
            for status, refusal in refusals.items():
                told = {**refusal, "content": _V2_FAILURE} if path.startswith("/v2") else refusal
                operation["responses"].setdefault(str(status), told)
        return document

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI's documentation extends OpenAPI
