"""Authentication: API keys, tokens, and a rate limit for each caller. Every route needs it that is not public."""

import hmac
import ipaddress
import logging
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import IssuerUnavailableError
from server.http.api_keys import ApiKeysError, Keys, NoKeysError, parse_api_keys, read_api_keys
from server.http.problems import problem
from server.observability.logs import CURRENT
from server.settings import RATE_UNITS, Settings

if TYPE_CHECKING:  # PyJWT is an extra
    from server.http.oidc import OidcVerifier

# Routes that compute nothing: probes and pages. A new route needs authentication until it is named here.
_PUBLIC = frozenset({"/", "/livez", "/readyz", "/health", "/docs", "/openapi.json", "/ui"})
_PUBLIC_BELOW = ("/docs/", "/ui/", "/v2/health/")
_CHECK_SECONDS = 1.0  # between two checks of whether the file of keys has changed
_log = logging.getLogger(__name__)


def is_public(path: str) -> bool:
    return path in _PUBLIC or path.startswith(_PUBLIC_BELOW)


@dataclass(frozen=True)
class Auth:
    """Holds the checks that the settings enable; without any, nothing is installed."""

    keys: "ApiKeys | None" = None
    tokens: "OidcVerifier | None" = None
    rate: "RateLimit | None" = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Reads the keys; raises ApiKeysError if that fails."""
        keys = tokens = None
        if settings.api_keys_file:
            keys = ApiKeys.from_file(settings.api_keys_file)
        elif settings.api_keys is not None:  # an empty one is a mistake, and must not open the server
            keys = ApiKeys(parse_api_keys(settings.api_keys.get_secret_value(), where="DISTRINEWS_API_KEYS"))
        if settings.oidc_issuer and settings.oidc_audience:
            from server.http.oidc import OidcVerifier

            tokens = OidcVerifier(
                issuer=settings.oidc_issuer, audience=settings.oidc_audience, jwks_url=settings.oidc_jwks_url
            )
        return cls(keys, tokens, RateLimit(settings.rate_limit) if settings.rate_limit else None)

    def middleware(self) -> list[Middleware]:
        return [Middleware(Authentication, auth=self)] if self.keys or self.tokens or self.rate else []

    def dependencies(self) -> list[Any]:
        """Documents in OpenAPI what a call needs; the middleware has checked it before."""
        key = APIKeyHeader(name="X-API-Key", scheme_name="key", auto_error=False)
        token = HTTPBearer(bearerFormat="JWT", scheme_name="token", auto_error=False)
        return [Security(key)] * bool(self.keys) + [Security(token)] * bool(self.tokens)

    def refusals(self) -> list[HTTPStatus]:
        """Statuses with which a call may be refused."""
        refusals = [HTTPStatus.UNAUTHORIZED] * bool(self.keys or self.tokens)
        refusals += [HTTPStatus.SERVICE_UNAVAILABLE] * bool(self.tokens)
        return refusals + [HTTPStatus.TOO_MANY_REQUESTS] * bool(self.rate)


class Authentication:
    """Refuses a request without a valid key or token, before its body is read."""

    def __init__(self, app: ASGIApp, *, auth: Auth) -> None:
        self._app, self._auth = app, auth
        keys, tokens = bool(auth.keys), bool(auth.tokens)
        ways = ["a key in the header X-API-Key"] * keys + ["a token as Authorization: Bearer"] * tokens
        self._needed = " or ".join(ways)
        challenges = ['ApiKey realm="distrinews"'] * keys + ['Bearer realm="distrinews"'] * tokens
        self._challenge = ", ".join(challenges)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        public = scope["type"] != "http" or is_public(scope["path"])
        refusal = None if public else await self._refusal(scope)
        await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Response | None:
        try:
            caller = await self._caller(Headers(scope=scope))
        except IssuerUnavailableError:
            detail = "The token cannot be checked now: the issuer's keys cannot be fetched; try again later"
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "10"})
        CURRENT.get().caller = caller[1] if caller else None
        # Refused callers are counted too, by address.
        rate = self._auth.rate
        if rate and (seconds := rate.seconds_to_wait(*(caller or ("address", _address(scope))))):
            detail = f"This caller makes too many requests; try again in {seconds} s"
            return problem(HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": str(seconds)})
        if caller is None and self._needed:
            # The same for every reason: a stranger must not learn which keys exist, have expired or are for others.
            headers = {"WWW-Authenticate": self._challenge}
            return problem(HTTPStatus.UNAUTHORIZED, f"This needs {self._needed}, and a valid one", headers=headers)
        return None

    async def _caller(self, headers: Headers) -> tuple[str, str] | None:
        """Returns the kind of credential that is valid, and the name of its owner."""
        keys, tokens = self._auth.keys, self._auth.tokens
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
        for key in (headers.get("x-api-key", "").strip(), bearer):  # OpenAI's and other clients send keys as Bearer
            if keys and key and (name := keys.name_of(key.encode("latin-1"))):
                return "key", name
        if tokens and bearer and (subject := await tokens.verify(bearer)):
            return "token", subject
        return None


def _address(scope: Scope) -> str:
    """Returns the client's address; of IPv6 the network of 64 bits, since one client has all of its addresses."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a socket file, or what a trusted proxy wrote
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


class RateLimit:
    """Counts requests of each caller in windows of fixed length that begin with the caller's first request.

    Around the end of a window twice the rate may pass. Each process counts for itself.
    """

    def __init__(self, expression: str) -> None:
        limits = [part.strip().split("/") for part in expression.split(";")]
        self._windows = [_Windows(int(amount), RATE_UNITS[unit]) for amount, unit in limits]

    def seconds_to_wait(self, *caller: str) -> int:
        """Counts a request; returns 0 if the caller may make it."""
        return max(math.ceil(windows.hit(caller)) for windows in self._windows)


class _Windows:
    def __init__(self, amount: int, seconds: int) -> None:
        self._amount, self._seconds = amount, seconds
        self.by_caller: OrderedDict[tuple[str, ...], tuple[int, float]] = (
            OrderedDict()
        )  # hits and end; first ends first

    def hit(self, caller: tuple[str, ...]) -> float:
        """Counts a request; returns the seconds until the window ends if it is full."""
        now = time.monotonic()
        while self.by_caller and next(iter(self.by_caller.values()))[1] <= now:
            self.by_caller.popitem(last=False)
        hits, end = self.by_caller.get(caller, (0, now + self._seconds))
        self.by_caller[caller] = hits + 1, end
        return end - now if hits >= self._amount else 0.0


class ApiKeys:
    """Knows the owner of each key. A file is read again when it changes; the keys stay if that fails, but not if it has none."""

    def __init__(self, keys: Keys, *, file: Path | None = None) -> None:
        self._keys, self._file = keys, file
        self._version = _version(file) if file else None
        self._check_at = time.monotonic() + _CHECK_SECONDS

    @classmethod
    def from_file(cls, file: Path) -> Self:
        return cls(read_api_keys(file), file=file)

    def name_of(self, key: bytes) -> str | None:
        self._reread_if_changed()
        digest, found = sha256(key).digest(), None
        for known, name in self._keys.items():  # all of them: the time taken does not depend on the key
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _reread_if_changed(self) -> None:
        now = time.monotonic()
        if self._file is None or now < self._check_at:
            return
        self._check_at = now + _CHECK_SECONDS
        version = _version(self._file)  # before reading: a later change is seen at the next check
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = read_api_keys(self._file)
        except NoKeysError as error:  # the last key was taken away
            self._keys = {}
            _log.error("%s; no key is accepted until there is one", error)
        except ApiKeysError as error:
            _log.warning("%s; the keys read before stay", error)
        else:
            _log.info("%s: read again, %d keys", self._file, len(self._keys))


def _version(file: Path) -> tuple[int, int, int] | None:
    """Changes when the file changes or is replaced, as in a mounted Secret."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
