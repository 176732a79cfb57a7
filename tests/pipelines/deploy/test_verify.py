"""The check of a server's labels against those of evaluate."""

from http.server import BaseHTTPRequestHandler

import pytest

from pipelines.deploy.verify import Expected, verify
from server.errors import UserError
from server.http.client import Client
from tests.support.answering import Reply, answering, sports


def refusing_long_texts(texts: list[str], _: BaseHTTPRequestHandler) -> Reply:
    assert max(map(len, texts)) <= 100, "the limit that the server gives in /health"
    errors = [{"place": f"body/texts/{n}", "detail": "too long"} for n, text in enumerate(texts) if len(text) == 100]
    return (422, {"detail": "too long", "errors": errors}, {}) if errors else sports(texts)


@pytest.mark.parametrize(
    ("long", "agreeing"), [("word " * 21, 2), ("x" * 100, 2)], ids=["above the limit", "refused for another reason"]
)
def test_a_test_text_that_the_server_does_not_take_is_left_out_of_the_comparison(long: str, agreeing: int) -> None:
    with answering(refusing_long_texts) as url, Client(url) as client:
        expected = Expected(["a", long, "b"], ["Sports", "World", "Sports"])
        assert verify(client, expected, min_agreement=1) == {"agreement": 1, "texts": agreeing}
        with pytest.raises(UserError, match="the server refuses all 1 test texts; the first: too long"):
            verify(client, Expected([long], ["World"]), min_agreement=0.5)


def test_where_all_test_texts_are_above_the_servers_limit_they_are_cut() -> None:
    with answering() as url, Client(url) as client:
        assert verify(client, Expected(["word " * 21], ["Sports"]), min_agreement=1) == {"agreement": 1, "texts": 1}


def test_a_server_that_agrees_too_rarely_is_refused() -> None:
    with answering() as url, Client(url) as client:
        expected = Expected(["a", "b"], ["Sports", "World"])
        assert verify(client, expected, min_agreement=0.5)["agreement"] == 0.5
        with pytest.raises(UserError, match="gives 50% of 2 test texts the label that evaluate gave, fewer than 90%"):
            verify(client, expected, min_agreement=0.9)
