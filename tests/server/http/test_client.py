"""The client of the server, against HTTP servers that answer well, badly, late and not at all."""

import subprocess
import sys
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from pydantic import SecretStr

from server.errors import UserError
from server.http import client
from server.http.client import Client, read_api_key
from server.inference.classifier import Prediction
from tests.support.answering import HEALTH, LABELS, Reply, answering, sports

pytestmark = pytest.mark.slow  # the module takes seconds

KEY = "a-key-that-nobody-guesses"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which take no time."""
    found: list[float] = []
    monkeypatch.setattr(Client, "_sleep", lambda _, seconds: found.append(seconds))
    return found


def failure(url: str, texts: list[str], **settings: float) -> str:
    with pytest.raises(UserError) as caught, Client(url, **settings) as asking:  # type: ignore[arg-type]
        asking.classify(texts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_texts_are_classified_in_batches_as_large_as_the_server_takes() -> None:
    sizes = []

    def answer(texts: list[str], _: BaseHTTPRequestHandler) -> Reply:
        sizes.append(len(texts))
        return sports(texts)

    with answering(answer) as url, Client(url) as asking:
        answers = asking.classify(["a text"] * 10)
        assert asking.health.labels == LABELS
    assert sizes == [4, 4, 2]
    assert [answer.label for answer in answers if not isinstance(answer, str)] == ["Sports"] * 10


def test_a_prediction_has_the_fields_of_the_servers_own() -> None:
    assert set(client.Prediction.model_fields) == set(Prediction.model_fields)


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b"", b'{"label": "Sports"}', b"[1, 2]"])
def test_an_answer_that_is_no_prediction_is_one_line(body: bytes) -> None:
    with answering(lambda *_: (200, body, {})) as url:
        assert "is not answered by a DistriNews server of this version: HTTP 200" in failure(url, ["a", "b"])
    with answering(health=lambda: (200, body, {})) as url:
        assert "/health is not answered by a DistriNews server" in failure(url, ["a"])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_more_or_fewer_answers_than_texts_are_an_error(count: int) -> None:
    with answering(lambda *_: sports(["text"] * count)) as url:
        assert f"/predict/batch: {count} answers for 2 texts" in failure(url, ["a", "b"])


def test_a_text_that_the_server_refuses_gets_its_reason_and_the_others_an_answer() -> None:
    def answer(texts: list[str], _: BaseHTTPRequestHandler) -> Reply:
        errors = [{"place": f"body/texts/{n}", "detail": "too long"} for n, text in enumerate(texts) if text == "bad"]
        return (422, {"detail": "no", "errors": errors}, {}) if errors else sports(texts)

    with answering(answer) as url, Client(url) as asking:
        answers = asking.classify(["a", "bad", "b", "bad"])
    assert [answer if isinstance(answer, str) else answer.label for answer in answers] == ["Sports", "too long"] * 2


def test_a_refusal_that_names_no_text_is_an_error() -> None:
    with answering(lambda *_: (422, {"detail": "no room for texts", "errors": []}, {})) as url:
        assert failure(url, ["a"]).endswith("/predict/batch: HTTP 422: no room for texts")
    with answering(lambda *_: (307, b"", {"Location": "https://elsewhere/"})) as url:
        assert "HTTP 307: redirects to https://elsewhere/" in failure(url, ["a"])


def test_a_body_too_large_for_the_server_is_sent_in_halves() -> None:
    sizes = []

    def answer(texts: list[str], _: BaseHTTPRequestHandler) -> Reply:
        sizes.append(len(texts))
        return (413, {"detail": "too large"}, {}) if "long" in texts else sports(texts)

    with answering(answer) as url, Client(url) as asking:
        answers = asking.classify(["a", "long", "c", "d"])
    assert sizes == [4, 2, 1, 1, 2]
    assert [isinstance(answer, str) for answer in answers] == [False, True, False, False]


def test_a_busy_or_failing_server_is_tried_again_after_the_time_in_its_answer(waits: list[float]) -> None:
    answers: list[Reply] = [(429, {"detail": "full"}, {"Retry-After": "7"}), (503, {}, {}), (502, {}, {}), (504, {}, {})]  # fmt: skip
    lines: list[str] = []

    def answer(texts: list[str], handler: BaseHTTPRequestHandler) -> Reply:
        if len(answers) == 2:
            handler.connection.close()  # and the answer is lost
        return answers.pop(0) if answers else sports(texts)

    with answering(answer) as url, Client(url, on_retry=lines.append) as asking:
        assert len(asking.classify(["a"])) == 1
    assert len(waits) == 4
    assert 7 <= waits[0] < 9
    assert 0.5 <= waits[1] < waits[2] < waits[3] < 8
    assert lines[0].startswith(f"{url}/predict/batch: HTTP 429: full; next try in ")


def test_a_server_that_stays_away_is_given_up_after_the_patience_with_its_reason(waits: list[float]) -> None:
    with answering(lambda *_: (503, {"detail": "the server stops"}, {})) as url:
        output = failure(url, ["a"], patience_seconds=60)
    assert output.endswith("/predict/batch: HTTP 503: the server stops, for 60 s")
    assert 55 < sum(waits) <= 60
    assert "/health: [Errno 111] Connection refused, for 1 s" in failure(url, ["a"], patience_seconds=1)


def test_a_full_server_has_longer_than_one_that_is_away(waits: list[float]) -> None:
    with answering(lambda *_: (429, {}, {"Retry-After": "20"})) as url:
        assert "HTTP 429: {}, for 200 s" in failure(url, ["a"], patience_seconds=1, busy_seconds=200)
    assert 195 < sum(waits) <= 200


def test_retry_after_may_be_a_date_and_is_ignored_where_it_is_neither(waits: list[float]) -> None:
    answers: list[Reply] = [(503, {}, {"Retry-After": formatdate(4e9, usegmt=True)}), (503, {}, {"Retry-After": "x"})]
    with (
        answering(lambda texts, _: answers.pop(0) if answers else sports(texts)) as url,
        Client(url, patience_seconds=1000) as asking,
    ):
        asking.classify(["a"])
    assert 300 <= waits[0] <= 375
    assert waits[1] < 2


def test_a_model_counts_as_served_when_every_check_in_a_row_finds_it(waits: list[float]) -> None:
    digests = ["old", "new", "old", "new", "new", "new", "new", "new"]
    with answering(health=lambda: (200, {**HEALTH, "sha256": digests.pop(0)}, {})) as url, Client(url) as asking:
        assert asking.wait_for_model("new", timeout_seconds=60).sha256 == "new"
    assert not digests
    assert len(waits) == 2


def test_another_model_is_named_with_both_digests() -> None:
    why = f"answers with another model: its sha256 is {'0' * 64}, not {'1' * 64}"
    with answering() as url, Client(url) as asking, pytest.raises(UserError, match=why):
        asking.wait_for_model("1" * 64, timeout_seconds=0)


def test_the_key_is_read_from_a_file_or_the_environment_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(texts: list[str], handler: BaseHTTPRequestHandler) -> Reply:
        return sports(texts) if handler.headers["X-API-Key"] == KEY else (401, {"detail": "unknown key"}, {})

    (tmp_path / "key").write_text(f"{KEY}\n", encoding="utf-8")
    monkeypatch.setenv("DISTRINEWS_API_KEY", KEY[::-1])
    with answering(answer) as url:
        assert "wants an API key and got none: set DISTRINEWS_API_KEY (HTTP 401: unknown key)" in failure(url, ["a"])
        with pytest.raises(UserError) as caught, Client(url, api_key=read_api_key()) as asking:
            asking.classify(["a"])
        assert "refuses this one" in str(caught.value)
        assert KEY[::-1] not in str(caught.value)
        with Client(url, api_key=read_api_key(tmp_path / "key")) as asking:
            assert len(asking.classify(["a"])) == 1
    with pytest.raises(UserError, match="none: cannot be read: No such file or directory"):
        read_api_key(tmp_path / "none")


@pytest.mark.parametrize("url", ["nowhere", "ftp://somewhere", "http://[::1"])
def test_an_address_that_is_none_is_one_line(url: str) -> None:
    assert failure(url, ["a"]).startswith(f"{url}: ")


def test_a_password_in_the_address_is_shown_nowhere(waits: list[float]) -> None:
    with answering(lambda *_: (500, b"", {})) as url:
        assert KEY not in failure(url.replace("//", f"//me:{KEY}@"), ["a"])
    assert waits == []
    assert Client("http://user:p@host/", api_key=SecretStr("x")).url == "http://host"


def test_the_client_needs_none_of_the_libraries_that_serve_or_compute() -> None:
    code = "import sys, server.http.client; print({'torch', 'fastapi', 'tokenizers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
