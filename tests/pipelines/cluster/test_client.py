"""Requests to an API server over HTTP: retries, timeouts, refusals."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import kubernetes
import pytest

from pipelines.cluster.client import ApiError, Cluster, Polling
from server.errors import UserError
from tests.support.api_server import serving
from tests.support.store import Store

POLLING = Polling(interval_seconds=0.02, max_interval_seconds=0.1, read_timeout_seconds=2, timeout_seconds=0.5)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def cluster(store: Store) -> Iterator[Cluster]:
    with serving(store) as port:
        yield Cluster(kubernetes.client.Configuration(host=f"http://127.0.0.1:{port}"), "news", POLLING)


def test_a_request_is_retried_until_it_is_answered(store: Store, cluster: Cluster) -> None:
    store.fail("POST", 503)
    store.fail("POST", 429, headers={"Retry-After": "0"})
    store.fail("POST", 500)
    pod = {"metadata": {"name": "first"}}
    assert cluster.request("POST", cluster.path("v1", "pods"), body=pod)["metadata"]["name"] == "first"
    assert [method for _, method, _ in store.requests] == ["POST"] * 4


def test_the_last_answer_of_a_server_that_keeps_failing_is_named(store: Store, cluster: Cluster) -> None:
    store.fail("GET", 503, times=1_000)
    with pytest.raises(UserError, match=r"has not answered for 0\.5 s: 503 injected"):
        cluster.request("GET", cluster.path("v1", "pods"))
    with pytest.raises(UserError, match=r"has not answered for 0.1 s: 503 injected"):
        cluster.within(0.1).request("GET", cluster.path("v1", "pods"))


def test_a_refusal_is_not_retried(store: Store, cluster: Cluster) -> None:
    with pytest.raises(ApiError, match="404 pods 'none' not found") as caught:
        cluster.request("GET", cluster.path("v1", "pods", "none"))
    assert (caught.value.status, caught.value.reason) == (404, "NotFound")
    assert len(store.requests) == 1
    assert cluster.find(cluster.path("v1", "pods", "none")) is None


def test_nobody_listening_is_an_error_of_one_line() -> None:
    cluster = Cluster(kubernetes.client.Configuration(host="http://127.0.0.1:9"), "news", POLLING)
    with pytest.raises(UserError, match=r"has not answered for 0.5 s: NewConnectionError: .*refused") as caught:
        cluster.request("GET", cluster.path("v1", "pods"))
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer_is_known_while_a_request_waits(store: Store, cluster: Cluster) -> None:
    assert cluster.answering_since is not None
    with ThreadPoolExecutor(1) as threads:
        with store.changed:  # the server waits for this lock
            waiting = threads.submit(cluster.request, "GET", cluster.path("v1", "pods"))
            end = time.monotonic() + 5
            while cluster.answering_since is not None and time.monotonic() < end:
                time.sleep(0.01)
            assert cluster.answering_since is None
            held = time.monotonic()
        waiting.result(5)
    assert cluster.answering_since is not None
    assert cluster.answering_since >= held


def test_the_pauses_between_retries_add_up_to_the_timeout() -> None:
    retry = Polling().retry()
    total, waited = retry.total, 0.0
    assert isinstance(total, int)
    for _ in range(total):
        retry = retry.increment("GET", "/", error=None)
        retry.backoff_jitter = 0
        waited += retry.get_backoff_time()
    assert 900 <= waited <= 960
