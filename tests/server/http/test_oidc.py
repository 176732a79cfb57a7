"""Tokens of an OpenID Connect issuer: a real small issuer over HTTP, which signs with keys of its own."""

import asyncio
import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from starlette.middleware import Middleware

from server.http.auth import Auth
from server.http.middleware import RequestContext
from server.http.oidc import OidcVerifier
from server.settings import Settings

AUDIENCE = "news"
FIRST, SECOND, STRANGER = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(3))
CURVE = ec.generate_private_key(ec.SECP256R1())
SHARED_SECRET = "a secret of 32 bytes, symmetric!"  # noqa: S105 - one that must never open anything
SHARED = {"kty": "oct", "kid": "shared", "k": base64.urlsafe_b64encode(SHARED_SECRET.encode()).decode()}


class Issuer:
    """Serves a discovery document and its public keys; `keys` may change, and `up` be False."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [public(FIRST, "first")]
        self.up, self.requests, self.name = True, list[str](), ""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                documents = {
                    "/.well-known/openid-configuration": {"issuer": issuer.name, "jwks_uri": f"{issuer.url}/keys"},
                    "/keys": {"keys": issuer.keys},
                }
                self.send_response(200 if issuer.up else 500)
                self.end_headers()
                self.wfile.write(json.dumps(documents.get(self.path, {})).encode())

            def log_message(self, *_: object) -> None:
                """Logs nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = self.name = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def checker(self, **more: str) -> OidcVerifier:
        return OidcVerifier(issuer=self.url, audience=AUDIENCE, **more)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


def public(key: Any, kid: str, **more: str) -> dict[str, Any]:  # noqa: ANN401 - RSA or elliptic
    kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


def signed(issuer: Issuer, key: Any = FIRST, kid: str = "first", algorithm: str = "RS256", **claims: object) -> str:  # noqa: ANN401
    """A token for AUDIENCE, valid for a minute; a claim that is None is left out."""
    now = int(time.time())
    whole = {"iss": issuer.url, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 60} | claims
    given = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode(given, key, algorithm=algorithm, headers={"kid": kid})


def subjects(tokens: OidcVerifier, *given: str) -> list[str | None]:
    async def send() -> list[str | None]:
        return [await tokens.verify(token) for token in given]

    return asyncio.run(send())


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_a_token_of_the_issuer_names_its_caller_and_the_keys_are_fetched_once(issuer: Issuer) -> None:
    issuer.keys.append(public(CURVE, "curve", use="sig"))
    elliptic = signed(issuer, CURVE, "curve", "ES256", sub="bob", aud=["other", AUDIENCE])
    assert subjects(issuer.checker(), signed(issuer), elliptic, signed(issuer)) == ["alice", "bob", "alice"]
    assert issuer.requests == ["/.well-known/openid-configuration", "/keys"]


def test_a_named_place_of_the_keys_is_asked_without_discovery(issuer: Issuer) -> None:
    assert subjects(issuer.checker(jwks_url=f"{issuer.url}/keys"), signed(issuer)) == ["alice"]
    assert issuer.requests == ["/keys"]


def test_clocks_may_differ_a_little(issuer: Issuer) -> None:
    now = int(time.time())
    ahead, behind = signed(issuer, nbf=now + 10, iat=now + 10), signed(issuer, exp=now - 10)
    assert subjects(issuer.checker(), ahead, behind) == ["alice", "alice"]


def forged(issuer: Issuer, *, algorithm: str, secret: bytes = b"") -> str:
    """A token signed with a secret that everybody knows."""
    now = int(time.time())
    claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "mallory", "exp": now + 60}
    text = f"{encoded({'alg': algorithm, 'typ': 'JWT', 'kid': 'first'})}.{encoded(claims)}"
    signature = hmac.digest(secret, text.encode(), "sha256") if secret else b""
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def test_a_token_that_is_not_right_in_everything_is_refused(issuer: Issuer) -> None:
    now, right = int(time.time()), signed(issuer)
    issuer.keys.append(SHARED)
    issuer.keys.append(public(SECOND, "encryption", use="enc"))
    pem = FIRST.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header, claims, signature = right.split(".")
    other_claims = encoded({"iss": issuer.url, "aud": AUDIENCE, "sub": "mallory", "exp": now + 60})
    wrong = {
        "expired": signed(issuer, exp=now - 60),
        "for ever": signed(issuer, exp=None),
        "not yet": signed(issuer, nbf=now + 120),
        "from the future": signed(issuer, iat=now + 120),
        "for others": signed(issuer, aud="shop"),
        "for nobody": signed(issuer, aud=None),
        "of another issuer": signed(issuer, iss="https://elsewhere.example"),
        "of no issuer": signed(issuer, iss=None),
        "of an issuer nearly so called": signed(issuer, iss=f"{issuer.url}/"),
        "of nobody": signed(issuer, sub=None),
        "with an empty name": signed(issuer, sub=""),
        "with a name that would break a log": signed(issuer, sub="alice\nadmin"),
        "with a long name": signed(issuer, sub="a" * 256),
        "by a stranger's key": signed(issuer, STRANGER),
        "by a key for encryption": signed(issuer, SECOND, "encryption"),
        "by a key for signing that is not the one named": signed(issuer, SECOND, "first"),
        "by a shared secret": signed(issuer, SHARED_SECRET, "shared", "HS256"),
        "by the public key, as if it were a secret": forged(issuer, algorithm="HS256", secret=pem),
        "not signed": forged(issuer, algorithm="none"),
        "with another algorithm than the key's": signed(issuer, algorithm="RS512"),
        "without a key's id": jwt.encode({"sub": "alice"}, FIRST, algorithm="RS256"),
        "with other claims": f"{header}.{other_claims}.{signature}",
        "cut short": right[:-4],
        "without a signature": f"{header}.{claims}.",
        "no token": "abc",
        "empty": "",
        "not even text": "\xff.\xff.\xff",
        "too long": f"{right}{'A' * 20_000}",
        "nested deeply": f"{base64.urlsafe_b64encode(b'[' * 9000).decode()}.e30.e30",
    }
    tokens = issuer.checker()
    answers = dict(zip(wrong, subjects(tokens, *wrong.values()), strict=True))
    assert answers == dict.fromkeys(wrong)
    assert subjects(tokens, right) == ["alice"]


def test_a_new_key_is_fetched_when_it_is_met_and_a_withdrawn_one_is_soon_refused(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = issuer.checker(jwks_url=f"{issuer.url}/keys")
    assert subjects(tokens, signed(issuer)) == ["alice"]
    issuer.keys = [public(SECOND, "second")]
    rotated = signed(issuer, SECOND, "second", sub="bob")
    assert subjects(tokens, rotated, rotated) == [None, None]
    assert len(issuer.requests) == 1, "unknown ids make the server call the issuer once in a while, not at each request"
    monkeypatch.setattr("server.http.oidc._RETRY_SECONDS", 0)
    assert subjects(tokens, rotated, signed(issuer)) == ["bob", None]


def test_keys_are_renewed_while_the_old_ones_serve(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, token = issuer.checker(), signed(issuer)
    assert subjects(tokens, token) == ["alice"]
    monkeypatch.setattr("server.http.oidc._RENEW_SECONDS", 0)
    issuer.keys = [public(SECOND, "second")]

    async def send() -> list[str | None]:
        answers = [await tokens.verify(token)]
        renewal = tokens._keys._fetching
        assert renewal, "the answer did not wait for the renewal"
        await renewal
        return [*answers, await tokens.verify(token)]

    assert asyncio.run(send()) == ["alice", None]


def test_many_at_once_wait_for_one_fetch(issuer: Issuer) -> None:
    tokens, token = issuer.checker(), signed(issuer)

    async def send() -> list[str | None]:
        return await asyncio.gather(*[tokens.verify(token) for _ in range(20)])

    assert asyncio.run(send()) == ["alice"] * 20
    assert len(issuer.requests) == 2


def app_of(issuer: Issuer, **more: Any) -> FastAPI:  # noqa: ANN401 - whatever Settings takes
    auth = Auth.from_settings(Settings(oidc_issuer=issuer.url, oidc_audience=AUDIENCE, **more))
    app = FastAPI(middleware=[Middleware(RequestContext, on_start=lambda: None, on_end=()), *auth.middleware()])
    app.add_api_route("/predict", lambda: "computed", methods=["POST"], dependencies=auth.dependencies())
    return app


def post(app: FastAPI, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.post("/predict", headers={name.replace("_", "-"): one for name, one in headers.items()})

    return asyncio.run(send())


def test_a_token_or_a_key_is_enough_and_openapi_names_both(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "DISTRINEWS_API_KEYS", "billing:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"
    )
    app = app_of(issuer)
    assert post(app, Authorization=f"Bearer {signed(issuer)}").status_code == 200
    assert post(app, Authorization=f"bearer  {signed(issuer)}").status_code == 200
    assert post(app, X_API_Key="key").status_code == 200
    assert post(app, X_API_Key="wrong", Authorization=f"Bearer {signed(issuer)}").status_code == 200
    wrong = [post(app), post(app, Authorization="Bearer abc"), post(app, Authorization=f"Basic {signed(issuer)}")]
    assert [one.status_code for one in wrong] == [401] * 3
    assert wrong[0].headers["WWW-Authenticate"] == 'ApiKey realm="distrinews", Bearer realm="distrinews"'
    assert set(app.openapi()["components"]["securitySchemes"]) == {"key", "token"}
    assert app.openapi()["paths"]["/predict"]["post"]["security"] == [{"key": []}, {"token": []}]


def test_a_silent_issuer_is_not_the_caller_s_fault(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.http.oidc._RETRY_SECONDS", 0)
    app, token = app_of(issuer), f"Bearer {signed(issuer)}"
    issuer.up = False
    silent = post(app, Authorization=token)
    assert (silent.status_code, silent.headers["Retry-After"]) == (503, "10")
    assert post(app).status_code == 401, "a call without a token needs no issuer"
    issuer.up, issuer.name = True, "https://elsewhere.example"
    assert post(app, Authorization=token).status_code == 503
    issuer.name, issuer.keys = issuer.url, [public(FIRST, "first", use="enc"), SHARED]
    assert post(app, Authorization=token).status_code == 503
    issuer.keys = [public(FIRST, "first")]
    assert post(app, Authorization=token).status_code == 200
    issuer.up = False
    assert post(app, Authorization=token).status_code == 200, "the keys fetched before serve on"
    monkeypatch.setattr("server.http.oidc._TRUST_SECONDS", 0)
    assert post(app, Authorization=token).status_code == 503, "but not for ever"
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "the issuer calls itself 'https://elsewhere.example'; --oidc-issuer should be just that" in messages[1]
    assert "no key is for one of RS256" in messages[2]
