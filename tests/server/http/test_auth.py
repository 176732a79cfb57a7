"""Keys, rates, other origins and the permissions of pages limit access to the server."""

import asyncio
import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from server.app import create_app
from server.cli import run_command
from server.http.api_keys import ApiKeysError, Key, parse_api_keys, read_api_keys
from server.http.auth import ApiKeys, Auth, RateLimit, is_public
from server.http.lifecycle import Lifecycle
from server.inference.backends import Choice
from server.inference.classifier import Classifier
from server.model_folder import read_model_folder
from server.observability.logs import RequestRecord
from server.routes.pages import page_headers
from server.settings import Settings
from tests.support.servers import Gated, read_settings, serving

KEY, OTHER_KEY = "dn_of-billing", "dn_of-search"
LINES = "".join(
    f"{name}:{sha256(key.encode()).hexdigest()}\n" for name, key in (("billing", KEY), ("search", OTHER_KEY))
)
OPEN = {"/", "/livez", "/readyz", "/health", "/docs", "/docs/assets", "/openapi.json", "/ui"}
OPEN |= {"/v2/health/live", "/v2/health/ready"}


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Iterator[Classifier]:
    made = Classifier(Choice(read_model_folder(folder, ("int8",)), Gated()), Settings(workers=1))
    yield made
    made.close()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"# who may call\n\n{LINES}")
    return file


def app_of(classifier: Classifier, **settings: Any) -> FastAPI:  # noqa: ANN401 - whatever Settings takes
    chosen = Settings(**settings)
    return create_app(classifier, Lifecycle(classifier, drain_seconds=0), chosen, Auth.from_settings(chosen))


def request(app: FastAPI, path: str = "/predict", *, method: str = "POST", **headers: str) -> httpx.Response:
    """Returns an answer of the app; underscores in the names of headers become dashes."""
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            json = {"text": "goal"} if method == "POST" else None
            return await client.request(method, path, json=json, headers=named)

    return asyncio.run(send())


def test_without_settings_there_is_no_authentication(classifier: Classifier) -> None:
    app = app_of(classifier)
    assert request(app).status_code == 200
    assert not {"Authentication", "CORSMiddleware"} & {getattr(one.cls, "__name__", "") for one in app.user_middleware}
    assert "securitySchemes" not in app.openapi()["components"]
    assert "401" not in app.openapi()["paths"]["/predict"]["post"]["responses"]


def test_a_key_may_call_and_anything_else_gets_the_same_refusal(classifier: Classifier, key_file: Path) -> None:
    app = app_of(classifier, api_keys_file=key_file)
    assert request(app, X_API_Key=KEY).status_code == 200
    assert request(app, X_API_Key=f"{OTHER_KEY} ").status_code == 200
    assert request(app, Authorization=f"bearer {KEY}").status_code == 200, "as clients of other services send keys"
    digest = sha256(KEY.encode()).hexdigest()
    refusals = [
        request(app),
        request(app, X_API_Key=KEY[:-1]),
        request(app, X_API_Key=f"{KEY} {KEY}"),
        request(app, X_API_Key="schlüssel"),
        request(app, X_API_Key="billing"),
        request(app, X_API_Key=digest),
        request(app, Authorization=f"Basic {KEY}"),
        request(app, "/nowhere"),
    ]
    assert {one.status_code for one in refusals} == {401}
    assert len({str(one.json() | {"request_id": ""}) + one.headers["WWW-Authenticate"] for one in refusals}) == 1
    assert refusals[0].headers["WWW-Authenticate"] == 'ApiKey realm="distrinews"'
    assert refusals[0].headers["Content-Type"] == "application/problem+json"
    assert refusals[0].json()["detail"] == "This needs a key in the header X-API-Key, and a valid one"


def test_refusals_are_counted_by_their_reason(classifier: Classifier, key_file: Path) -> None:
    app = app_of(classifier, api_keys_file=key_file, rate_limit="2/minute")

    def counted(reason: str) -> float | None:
        found: float | None = app.state.metrics.registry.get_sample_value(
            "distrinews_rejected_requests_total", {"reason": reason}
        )
        return found

    assert (counted("unauthorized"), counted("rate_limited")) == (0, 0)
    assert request(app, X_API_Key="dn_wrong").status_code == 401
    assert [request(app, X_API_Key=KEY).status_code for _ in range(5)] == [200, 200, 429, 429, 429]
    assert (counted("unauthorized"), counted("rate_limited")) == (1, 3)


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for route in iter_route_contexts(app.routes):
        assert route.path is not None
        path = re.sub(r"{[^}]*}", "x", route.path)
        methods = [] if isinstance(route.original_route, Mount) else sorted(route.methods or ())
        yield from ((method, path) for method in methods or ("GET",))


def test_every_route_is_guarded_that_is_not_known_to_be_open(classifier: Classifier, key_file: Path) -> None:
    app = app_of(classifier, api_keys_file=key_file)
    app.add_api_route("/new", lambda: "computed")
    seen = set()
    for method, path in routes(app):
        seen.add(path)
        status = request(app, path, method=method).status_code
        assert (status != 401) == (path in OPEN), f"{method} {path} answers {status}: open it here too, or guard it"
    assert {"/new", "/predict", "/predict/batch", "/v2/models/x/infer", "/livez", "/docs/assets"} <= seen
    assert set(request(app, "/v2/models/x/infer").json()) == {"error"}


@pytest.mark.parametrize("path", ["/predict/", "//predict", "/livez/", "/health/../predict", "/PREDICT", "/livez/x"])
def test_a_path_that_only_looks_open_is_guarded(path: str) -> None:
    assert not is_public(path)


def test_the_name_of_the_caller_is_there_for_logs(classifier: Classifier, key_file: Path) -> None:
    settings, ended = Settings(api_keys_file=key_file), list[RequestRecord]()
    lifecycle, auth = Lifecycle(classifier, drain_seconds=0), Auth.from_settings(settings)
    app = create_app(classifier, lifecycle, settings, auth, on_request_end=[ended.append])
    request(app, X_API_Key=OTHER_KEY)
    request(app)
    assert [record.caller for record in ended] == ["search", None]


def test_openapi_documents_the_credentials_of_a_call(classifier: Classifier, key_file: Path) -> None:
    described = app_of(classifier, api_keys_file=key_file).openapi()
    assert described["components"]["securitySchemes"] == {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    }
    predict, health = described["paths"]["/predict"]["post"], described["paths"]["/health"]["get"]
    assert predict["security"] == [{"key": []}]
    assert "application/problem+json" in predict["responses"]["401"]["content"]
    infer = described["paths"]["/v2/models/{model_name}/infer"]["post"]
    assert infer["responses"]["401"]["content"] == infer["responses"]["404"]["content"], "in the protocol's form"
    assert infer["security"] == [{"key": []}]
    assert "security" not in health
    assert "401" not in health["responses"]


def test_a_file_of_keys_is_read_again_when_it_changes_and_a_broken_one_is_not_taken(
    key_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ApiKeys.from_file(key_file)
    new = "dn_new"
    replacement = key_file.with_name("next")
    replacement.write_text(f"fresh:{sha256(new.encode()).hexdigest()}\n")
    replacement.replace(key_file)
    assert keys.name_of(new.encode()) is None, "the file is checked once a second at most"
    monkeypatch.setattr("server.http.auth._CHECK_SECONDS", 0.0)
    keys._check_at = 0
    assert (keys.name_of(new.encode()), keys.name_of(KEY.encode())) == ("fresh", None)
    key_file.write_text(f"fresh:{new}\n")
    assert keys.name_of(new.encode()) == keys.name_of(new.encode()) == "fresh"
    [message] = [record.getMessage() for record in caplog.records]  # one for the change, not for each request
    assert message.startswith(str(key_file))
    assert message.endswith("; the keys read before stay")
    assert new not in caplog.text


@pytest.mark.parametrize("left", ["", "# billing:taken away\n", None])
def test_the_last_key_that_is_taken_away_lets_nobody_in(
    key_file: Path, left: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys.from_file(key_file)
    assert keys.name_of(KEY.encode())
    if left is None:
        key_file.unlink()
    else:
        key_file.write_text(left)
    keys._check_at = 0
    assert keys.name_of(KEY.encode()) is None
    assert "no key is accepted until there is one" in caplog.text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("billing dn_secret", "line 1: should be NAME:SHA256"),
        ("# first\nbilling:dn_secret", "line 2: should be NAME:SHA256"),
        ("bill ing:" + "a" * 64, "line 1: should be"),
        (f"dn_secret:{'a' * 64}\nother:{'A' * 64}", "line 2: this key has a line already"),
        ("# dn_secret\n", "has no key"),
        (b"\xff\xfe", "is no text in UTF-8"),
    ],
)
def test_a_bad_line_is_named_but_not_shown(content: str | bytes, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ApiKeysError) as error:
        read_api_keys(file)
    assert str(error.value).startswith(str(file))
    assert expected in str(error.value)
    assert "SHA256, as distrinews key NAME prints it" in str(error.value) or "line 1: should" not in str(error.value)
    assert "billing:" not in str(error.value)


def test_all_keys_are_compared_so_that_time_reveals_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def counted(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr("server.http.auth.hmac.compare_digest", counted)
    assert ApiKeys(parse_api_keys(LINES, where="here")).name_of(KEY.encode()) == "billing"
    assert len(compared) == 2


def test_the_command_makes_a_key_and_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    keys = set[str]()
    for _ in range(2):
        run_command(Key, ["billing"], prog="distrinews key")
        found = re.search(r"^key   (dn_\S{43})\nline  (\S+)$", capsys.readouterr().out, re.MULTILINE)
        assert found
        assert ApiKeys(parse_api_keys(found[2], where="here")).name_of(found[1].encode()) == "billing"
        keys.add(found[1])
    assert len(keys) == 2
    with pytest.raises(SystemExit, match="2"):
        run_command(Key, ["a b"], prog="distrinews key")
    assert "NAME 'a b': is no name of a caller" in capsys.readouterr().err


def test_a_caller_above_its_rate_gets_the_time_to_retry_after(classifier: Classifier, key_file: Path) -> None:
    app = app_of(classifier, api_keys_file=key_file, rate_limit="2/minute")
    assert [request(app, X_API_Key=KEY).status_code for _ in range(3)] == [200, 200, 429]
    refused = request(app, X_API_Key=KEY)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert 50 <= int(refused.headers["Retry-After"]) <= 60
    assert f"try again in {refused.headers['Retry-After']} s" in refused.json()["detail"]
    assert request(app, X_API_Key=OTHER_KEY).status_code == 200, "each key has its own rate"
    assert [request(app).status_code for _ in range(3)] == [401, 401, 429], "whoever guesses is slowed, by address"
    assert [request(app, "/livez", method="GET").status_code for _ in range(4)] == [200] * 4


def test_without_keys_the_rate_is_that_of_an_address(classifier: Classifier) -> None:
    app = app_of(classifier, rate_limit="1/minute")

    async def status(client: str) -> int:
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return (await http.post("/predict", json={"text": "goal"})).status_code

    clients = ["10.0.0.1", "10.0.0.2", "10.0.0.1", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", ""]
    assert [asyncio.run(status(client)) for client in clients] == [200, 200, 429, 200, 429, 200, 200]
    assert "401" not in app.openapi()["paths"]["/predict"]["post"]["responses"]


def test_a_window_ends_and_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("server.http.auth.time.monotonic", lambda: now[0])
    rate = RateLimit("2/second;3/minute")
    assert [rate.seconds_to_wait("a") for _ in range(3)] == [0, 0, 1]
    now[0] += 1
    assert 58 <= rate.seconds_to_wait("a") <= 60, "the longer window counts as well"
    now[0] += 59
    assert rate.seconds_to_wait("b") == 0
    assert [list(windows.by_caller) for windows in rate._windows] == [[("b",)], [("b",)]], "a is forgotten"
    assert rate.seconds_to_wait("a") == 0


def test_named_origins_may_call_and_need_no_key_for_a_preflight(classifier: Classifier, key_file: Path) -> None:
    app = app_of(classifier, api_keys_file=key_file, cors_origins="https://a.example, https://b.example")
    first = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-api-key,content-type"}
    allowed = request(app, method="OPTIONS", Origin="https://b.example", **first)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://b.example"
    assert "X-API-Key" in allowed.headers["Access-Control-Allow-Headers"]
    assert request(app, method="OPTIONS", Origin="https://c.example", **first).status_code == 400
    refused = request(app, Origin="https://a.example")
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, "https://a.example")
    assert "Access-Control-Allow-Origin" not in request(app_of(classifier), Origin="https://a.example").headers


def test_every_page_restricts_the_browser_and_loads_nothing_from_elsewhere(classifier: Classifier) -> None:
    app = app_of(classifier)
    answers = [request(app, path, method="GET") for method, path in routes(app) if method == "GET"]
    pages = [one for one in answers if one.headers.get("Content-Type", "").startswith("text/html")]
    assert "/docs" in [one.url.path for one in pages]
    for page in pages:
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        assert "script-src 'self' 'sha256-" in policy
        assert (page.headers["X-Frame-Options"], page.headers["Referrer-Policy"]) == ("DENY", "no-referrer")
        for link in re.findall(r"(?:src|href)=[\"'](?!data:)([^\"']+)", page.text):
            assert request(app, str(page.url.join(link).path), method="GET").status_code == 200, link


def test_of_a_page_s_scripts_only_those_written_in_it_run_by_their_hash() -> None:
    html = '<script src="a.js"></script><script>one()</script><script type="module">two()</script>'
    scripts = page_headers(html, frame_origins=())["Content-Security-Policy"].split("; ")[1]
    hashes = [base64.b64encode(sha256(script).digest()).decode() for script in (b"one()", b"two()")]
    assert scripts == f"script-src 'self' 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'"


def test_a_page_may_be_framed_by_the_origins_that_are_named() -> None:
    headers = page_headers("<script>one()</script>", frame_origins=("https://huggingface.co",))
    assert "frame-ancestors https://huggingface.co" in headers["Content-Security-Policy"]
    assert "X-Frame-Options" not in headers


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--api-keys", LINES], "--api-keys"),
        (["--rate-limit", "many"], "should be a number of requests and a time, such as 600/minute"),
        (["--rate-limit", "0/minute"], "should be a number of requests"),
        (["--cors-origins", "https://a.example/"], "'https://a.example/' is no origin, such as https://news.example"),
        (["--frame-origins", "*"], "origins are named one by one"),
        (["--forwarded-allow-ips", "10.0.0/8"], "'10.0.0/8' is no address or network, such as 10.0.0.7"),
        (["--forwarded-allow-ips", "*"], "'*' is no address or network"),
        (["--oidc-issuer", "accounts.example", "--oidc-audience", "news"], "should be a URL, such as https://"),
        (["--oidc-issuer", "https://accounts.example"], "--oidc-issuer needs --oidc-audience"),
        (["--oidc-audience", "news"], "mean nothing without --oidc-issuer"),
        (["--oidc-issuer", "https://a.example", "--oidc-audience", "b", "--cors-origins", "*"], "name the origins"),
    ],
)
def test_a_wrong_setting_is_refused_at_the_start(
    args: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        read_settings(["folder", *args])
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("lines", [None, "", "billing:dn_secret"])
def test_keys_that_cannot_be_read_are_named_and_not_shown(lines: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if lines is not None:
        monkeypatch.setenv("DISTRINEWS_API_KEYS", lines)
    with pytest.raises(ApiKeysError) as error:
        Auth.from_settings(read_settings(["folder", *(["--api-keys-file", "nowhere"] if lines is None else [])]))
    assert ("nowhere: cannot be read: No such file" if lines is None else "DISTRINEWS_API_KEYS") in str(error.value)
    assert "dn_secret" not in str(error.value)


@pytest.mark.slow
def test_keys_that_cannot_be_read_end_the_program_with_one_line_and_2(folder: Path) -> None:
    command = [sys.executable, "-m", "server.main", str(folder), "--port", "0", "--api-keys-file", "nowhere"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)


def test_keys_in_a_variable_are_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTRINEWS_API_KEYS", LINES)
    settings = read_settings(["folder"])
    assert LINES[10:40] not in repr(settings) + str(settings.model_dump()) + repr(settings.api_keys)
    with pytest.raises(SystemExit):
        read_settings(["--help"])
    assert LINES[10:40] not in capsys.readouterr().out


def test_without_the_extra_a_token_setting_names_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("server.settings.find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        read_settings(["folder", "--oidc-issuer", "https://accounts.example", "--oidc-audience", "news"])
    assert "pip install 'distrinews[oidc]'" in capsys.readouterr().err


@pytest.mark.slow
def test_neither_key_nor_token_is_ever_logged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRINEWS_API_KEYS", LINES)
    token = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJzdWIiOiJzZWNyZXQifQ.c2VjcmV0"  # noqa: S105 - opens nothing
    flags = ["--oidc-issuer", "http://127.0.0.1:1", "--oidc-audience", "news", "--drain-seconds", "0"]
    with serving(folder, *flags, "--log-level", "debug", "--rate-limit", "9/minute") as (process, client):
        right = client.post("/predict", json={"text": "goal"}, headers={"X-API-Key": KEY})
        assert right.status_code == 200
        assert right.headers["X-Content-Type-Options"] == "nosniff"
        forged = {"X-API-Key": "dn_wrong", "Authorization": f"Bearer {token}", "X-Forwarded-For": "203.0.113.7"}
        assert client.post("/predict", json={"text": "goal"}, headers=forged).status_code == 503
        big = client.post("/predict", content=b"x" * 300_000, headers={"X-API-Key": "dn_wrong"})
        assert big.status_code == 401
        assert client.get("/livez").status_code == 200, "the connection stays open after a body that was not read"
        process.terminate()
        output = "".join(process.communicate(timeout=20))
    assert "/predict" in output
    assert "the keys of http://127.0.0.1:1 cannot be fetched" in output
    assert "203.0.113.7" not in output, "no proxy is believed that is not named"
    for secret in (KEY, "dn_wrong", token, *token.split("."), *re.findall(r"[0-9a-f]{64}", LINES)):
        assert secret not in output


@pytest.mark.slow
def test_a_named_proxy_gives_the_address_of_the_client(folder: Path) -> None:
    flags = ["--forwarded-allow-ips", "127.0.0.1,10.0.0.0/8", "--rate-limit", "1/minute", "--drain-seconds", "0"]
    with serving(folder, *flags) as (_, client):
        statuses = [
            client.post("/predict", json={"text": "goal"}, headers={"X-Forwarded-For": address}).status_code
            for address in (
                "203.0.113.7",
                "203.0.113.8",
                "198.51.100.1, 203.0.113.7, 10.1.1.1",
                "203.0.113.9, ::ffff:10.1.1.1",
                "::FFFF:cb00:7109, ::ffff:a01:101",
            )
        ]
    assert statuses == [200, 200, 429, 200, 429], "an IPv4 address is one, in whichever form a proxy writes it"
