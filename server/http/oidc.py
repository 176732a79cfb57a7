"""Verifies tokens (JWT) of an OpenID Connect issuer with its public keys. Needs the extra `oidc`."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import jwt

from server.errors import IssuerUnavailableError

# Signatures by a private key that only the issuer has: with HS256 whoever can check a token could make one, and its public
# key would be taken for the secret.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_LEEWAY_SECONDS = 30  # that clocks may differ
_MAX_TOKEN_CHARACTERS = 16_384
_MAX_SUBJECT_CHARACTERS = 255  # as in OpenID Connect
_RENEW_SECONDS = 300  # so that a key which the issuer withdraws is soon refused
_RETRY_SECONDS = 10  # for a key that is not known: anyone can name one
_TRUST_SECONDS = 3600  # in keys while the issuer does not answer
_FETCH_SECONDS = 5
_log = logging.getLogger(__name__)


class OidcVerifier:
    """Accepts tokens that the issuer signed for this audience and that are valid now."""

    def __init__(self, *, issuer: str, audience: str, jwks_url: str | None = None) -> None:
        self._issuer, self._audience = issuer, audience
        self._keys = _IssuerKeys(issuer, jwks_url)

    async def verify(self, token: str) -> str | None:
        """Returns the subject of a valid token; raises IssuerUnavailableError without keys to check it."""
        if len(token) > _MAX_TOKEN_CHARACTERS:
            return None
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = await self._keys.find(kid) if kid else None
            return self._check(token, key) if key else None
        except (jwt.PyJWTError, ValueError) as error:
            # Only its kind: the message may hold a part of the token.
            _log.debug("a token was refused: %s", type(error).__name__)
            return None

    def _check(self, token: str, key: jwt.PyJWK) -> str | None:
        claims = jwt.decode(
            token,
            key,
            algorithms=_ALGORITHMS,
            issuer=self._issuer,
            audience=self._audience,
            leeway=_LEEWAY_SECONDS,
            options={
                "require": ["exp", "iss", "aud", "sub"]
            },  # nbf and iat are checked if present; few issuers give nbf
        )
        subject = claims["sub"]
        # It is written to logs.
        fits = isinstance(subject, str) and 0 < len(subject) <= _MAX_SUBJECT_CHARACTERS and subject.isprintable()
        return subject if fits else None


class _IssuerKeys:
    """Fetches the issuer's public keys on a thread, once at a time, and renews them while the old ones serve."""

    def __init__(self, issuer: str, jwks_url: str | None) -> None:
        self._issuer, self._jwks_url = issuer, jwks_url
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._tried = self._fetched = -float("inf")
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str) -> jwt.PyJWK | None:
        now = time.monotonic()
        if now - self._fetched > _TRUST_SECONDS:
            self._keys = {}
        wait = _RENEW_SECONDS if kid in self._keys else _RETRY_SECONDS
        if self._fetching is None and now - self._tried > wait:
            self._tried = now
            self._fetching = asyncio.create_task(self._fetch())
        if kid not in self._keys and self._fetching:
            await asyncio.shield(self._fetching)  # shield: others wait for it too
        if not self._keys:
            raise IssuerUnavailableError
        return self._keys.get(kid)

    async def _fetch(self) -> None:
        try:
            self._keys = await asyncio.to_thread(_fetch_keys, self._issuer, self._jwks_url)
            self._fetched = time.monotonic()
        except (jwt.PyJWTError, OSError, ValueError) as error:
            _log.warning("the keys of %s cannot be fetched: %s", self._issuer, error)
        finally:
            self._fetching = None


def _fetch_keys(issuer: str, jwks_url: str | None) -> Mapping[str, jwt.PyJWK]:
    keys = jwt.PyJWKSet.from_dict(_fetch_json(jwks_url or _discover(issuer))).keys
    usable = {
        key.key_id: key
        for key in keys
        if key.key_id and key.public_key_use in (None, "sig") and key.algorithm_name in _ALGORITHMS
    }
    if not usable:
        raise ValueError(f"no key is for one of {', '.join(_ALGORITHMS)} and has an id")
    return usable


def _discover(issuer: str) -> str:
    document = _fetch_json(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if document.get("issuer") != issuer:  # as OpenID Connect Discovery 1.0 requires, in 4.3
        raise ValueError(f"the issuer calls itself {document.get('issuer')!r}; --oidc-issuer should be just that")
    return str(document.get("jwks_uri"))


def _fetch_json(url: str) -> dict[str, Any]:
    document: dict[str, Any] = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_FETCH_SECONDS).fetch_data()
    return document
