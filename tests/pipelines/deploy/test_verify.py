"""The check of a server's labels against those of evaluate."""

from http.server import BaseHTTPRequestHandler

import pytest

from pipelines.deploy.verify import Expected, verify
from server.errors import UserError
from server.http.client import Client
from tests.support.answering import Reply, answering, sports


def refusing_long_texts(texts: list[str], _: BaseHTTPRequestHandler) -> Reply:
    errors = [{"place": f"body/texts/{n}", "detail": "too long"} for n, text in enumerate(texts) if len(text) > 10]
    return (422, {"detail": "too long", "errors": errors}, {}) if errors else sports(texts)


def test_a_test_text_above_the_servers_limit_is_left_out_of_the_comparison() -> None:
    with answering(refusing_long_texts) as url, Client(url) as client:
        expected = Expected(["a", "x" * 11, "b"], ["Sports", "World", "Sports"])
        assert verify(client, expected, min_agreement=1) == {"agreement": 1, "texts": 2}
        with pytest.raises(UserError, match="the server refuses all 1 test texts; the first: too long"):
            verify(client, Expected(["x" * 11], ["World"]), min_agreement=0.5)


def test_a_server_that_agrees_too_rarely_is_refused() -> None:
    with answering() as url, Client(url) as client:
        expected = Expected(["a", "b"], ["Sports", "World"])
        assert verify(client, expected, min_agreement=0.5)["agreement"] == 0.5
        with pytest.raises(UserError, match="gives 50% of 2 test texts the label that evaluate gave, fewer than 90%"):
            verify(client, expected, min_agreement=0.9)
