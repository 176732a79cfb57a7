"""The queue chooses the next texts to compute, and drops those that nobody waits for."""

import itertools
import random
import threading
import time
from dataclasses import dataclass

import pytest

from server.errors import QueueFullError
from server.inference.queue import MAX_PASSED_OVER, BatchQueue, Dropped, QueueEntry

_ARRIVALS = itertools.count()


@dataclass
class Request:
    deadline: float
    is_over: bool = False


def entry(length: int, *, from_batch: bool = False, seconds: float = 60) -> QueueEntry[Request]:
    request = Request(time.monotonic() + seconds)
    return QueueEntry([1] * length, request, from_batch=from_batch, arrived=float(next(_ARRIVALS)))


class Harness:
    """A queue that admits every entry and records the dropped ones."""

    def __init__(
        self, *, token_budget: int = 1000, max_texts: int = 10_000, max_tokens: int = 10**7, workers: int = 1
    ) -> None:
        self.dropped: list[tuple[QueueEntry[Request], Dropped]] = []
        self.queue: BatchQueue[Request] = BatchQueue(
            max_texts=max_texts,
            max_tokens=max_tokens,
            token_budget=token_budget,
            on_drop=lambda dead, reason: self.dropped.append((dead, reason)),
            workers=workers,
        )

    def put(self, *entries: QueueEntry[Request]) -> None:
        tokens = sum(map(len, entries))
        self.queue.reserve(texts=len(entries), tokens=tokens)
        self.queue.append(entries, reserved_tokens=tokens)


def test_a_worker_that_is_free_takes_a_text_at_once_and_does_not_wait_for_more() -> None:
    harness, one = Harness(), entry(10)
    harness.put(one)
    assert harness.queue.next_batch() == [one]


def test_a_batch_holds_the_waiting_texts_of_nearest_length_within_the_budget() -> None:
    harness = Harness(token_budget=100)
    short = [entry(20) for _ in range(4)]
    long = [entry(90) for _ in range(2)]
    harness.put(short[0], long[0], short[1], long[1], short[2], short[3])
    assert harness.queue.next_batch() == short
    assert [harness.queue.next_batch() for _ in long] == [[one] for one in long], "two of 90 exceed 100 tokens"


def test_a_worker_takes_no_more_than_its_share_of_the_queue() -> None:
    harness = Harness(token_budget=1000, workers=2)
    harness.put(*[entry(20) for _ in range(5)])
    assert [len(harness.queue.next_batch()) for _ in range(3)] == [3, 1, 1]


def test_padding_counts_towards_the_budget() -> None:
    harness = Harness(token_budget=100)
    harness.put(entry(10), *[entry(40) for _ in range(5)])
    taken = harness.queue.next_batch()
    assert max(map(len, taken)) * len(taken) <= 100


def test_a_text_longer_than_the_budget_is_computed_alone() -> None:
    harness, large = Harness(token_budget=100), entry(500)
    harness.put(large, entry(500))
    assert harness.queue.next_batch() == [large]


def test_the_texts_of_large_requests_give_way_to_single_ones() -> None:
    harness = Harness(token_budget=1)
    from_batch, single = [entry(10, from_batch=True) for _ in range(3)], entry(10)
    harness.put(*from_batch)
    harness.put(single)
    assert harness.queue.next_batch() == [single]
    assert harness.queue.next_batch() == [from_batch[0]]


@pytest.mark.parametrize("token_budget", [1, 200])
def test_no_text_is_passed_over_more_often_than_the_bound(token_budget: int) -> None:
    draw = random.Random(0)
    harness = Harness(token_budget=token_budget)
    waiting_long = entry(500, from_batch=True)
    harness.put(waiting_long)
    for batch in range(100):
        harness.put(*[entry(draw.randint(5, 60)) for _ in range(4)])
        if waiting_long in harness.queue.next_batch():
            assert batch <= MAX_PASSED_OVER
            return
    pytest.fail("a long text starves while short ones come")


def test_every_text_is_taken_once_whatever_the_order() -> None:
    draw = random.Random(1)
    harness = Harness(token_budget=300)
    entries = [entry(draw.randint(1, 200), from_batch=draw.random() < 0.5) for _ in range(500)]
    harness.put(*entries)
    harness.queue.close()
    taken = [one for batch in iter(harness.queue.next_batch, []) for one in batch]
    assert sorted(map(id, taken)) == sorted(map(id, entries))
    assert harness.queue.size == (0, 0)


def test_a_text_whose_deadline_has_passed_is_never_handed_out() -> None:
    harness, late, fine = Harness(), entry(10, seconds=-1), entry(10)
    harness.put(late, fine)
    assert harness.queue.next_batch() == [fine]
    assert harness.dropped == [(late, "deadline")]
    assert harness.queue.size == (0, 0)


def test_a_text_whose_client_has_left_is_never_handed_out() -> None:
    harness, gone, fine = Harness(), entry(10), entry(10)
    harness.put(gone, fine)
    gone.request.is_over = True
    assert harness.queue.next_batch() == [fine]
    assert harness.dropped == [(gone, "left")]


def test_a_full_queue_refuses_a_request_as_a_whole_with_the_reason() -> None:
    harness = Harness(max_texts=5)
    harness.put(*[entry(10) for _ in range(4)])
    with pytest.raises(QueueFullError, match="4 texts wait and 5 may"):
        harness.put(entry(10), entry(10))
    assert harness.queue.size == (4, 40)
    harness.put(entry(10))


def test_a_queue_full_of_tokens_refuses_too() -> None:
    harness = Harness(max_tokens=100)
    harness.put(entry(90))
    with pytest.raises(QueueFullError, match="90 tokens wait and 100 may"):
        harness.put(entry(20))


@pytest.mark.parametrize(("max_texts", "max_tokens"), [(8, 10_000), (1000, 100)])
def test_a_request_larger_than_the_queue_is_admitted_only_when_nothing_waits(max_texts: int, max_tokens: int) -> None:
    harness, small = Harness(max_texts=max_texts, max_tokens=max_tokens), entry(20)
    large = [entry(20) for _ in range(9)]
    harness.put(small)
    with pytest.raises(QueueFullError):
        harness.put(*large)
    assert harness.queue.next_batch() == [small]
    harness.put(*large)
    with pytest.raises(QueueFullError, match=f"9 texts wait and {max_texts} may|180 tokens wait and {max_tokens} may"):
        harness.put(entry(20))
    assert harness.queue.next_batch() == large


def test_a_text_that_nobody_waits_for_takes_no_place_in_a_full_queue() -> None:
    harness, gone, late = Harness(max_texts=3, max_tokens=100), entry(10), entry(60, seconds=0.01)
    harness.put(gone, late, entry(10))
    with pytest.raises(QueueFullError, match="3 texts wait and 3 may"):
        harness.put(entry(10))
    gone.request.is_over = True
    harness.put(entry(10))
    with pytest.raises(QueueFullError):
        harness.put(entry(90))
    time.sleep(0.01)
    harness.put(entry(80))
    assert harness.dropped == [(gone, "left"), (late, "deadline")]
    assert harness.queue.size == (3, 100)


def test_the_time_to_retry_follows_from_the_queue_and_its_speed() -> None:
    harness = Harness(max_tokens=50_000)
    harness.put(*[entry(500) for _ in range(100)])
    for _ in range(200):
        harness.queue.record_speed(tokens=1000, seconds=1.0)
    with pytest.raises(QueueFullError) as refused:
        harness.put(entry(10))
    assert refused.value.retry_after_seconds == pytest.approx(50, abs=1)


def test_the_time_for_which_the_queue_is_full_counts_from_the_first_refusal() -> None:
    harness = Harness(max_texts=1)
    harness.put(entry(10))
    assert harness.queue.full_seconds() == 0
    with pytest.raises(QueueFullError):
        harness.put(entry(10))
    time.sleep(0.02)
    assert harness.queue.full_seconds() >= 0.02


def test_a_queue_is_not_full_once_a_batch_is_taken_without_another_request() -> None:
    harness = Harness(max_texts=1)
    harness.put(entry(10))
    with pytest.raises(QueueFullError):
        harness.put(entry(10))
    harness.queue.next_batch()
    assert harness.queue.full_seconds() == 0


def test_a_queue_is_not_full_any_more_once_all_that_waited_is_dropped() -> None:
    harness = Harness(max_texts=1)
    gone = entry(10)
    harness.put(gone)
    with pytest.raises(QueueFullError):
        harness.put(entry(10))
    gone.request.is_over = True
    harness.queue.close()
    assert harness.queue.next_batch() == []
    assert harness.dropped == [(gone, "left")]
    assert harness.queue.full_seconds() == 0


def test_a_queue_is_not_full_any_more_once_reserved_room_is_given_back() -> None:
    harness = Harness(max_texts=1)
    harness.queue.reserve(texts=1, tokens=10)
    with pytest.raises(QueueFullError):
        harness.put(entry(10))
    harness.queue.release(texts=1, tokens=10)
    assert harness.queue.full_seconds() == 0


def test_reserved_room_that_is_not_used_is_given_back() -> None:
    harness = Harness()
    harness.queue.reserve(texts=2, tokens=100)
    harness.queue.append([entry(10), entry(10)], reserved_tokens=100)
    assert harness.queue.size == (2, 20)
    harness.queue.reserve(texts=1, tokens=30)
    harness.queue.release(texts=1, tokens=30)
    assert harness.queue.size == (2, 20)


def test_closing_lets_waiting_workers_end() -> None:
    harness = Harness()
    worker = threading.Thread(target=harness.queue.next_batch, daemon=True)
    worker.start()
    harness.queue.close()
    worker.join(timeout=5)
    assert not worker.is_alive()
