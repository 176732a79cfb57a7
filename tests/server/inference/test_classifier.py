"""The classifier answers every request that it admits: with predictions, or with the error that the request caused."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.errors import DeadlineExceededError
from server.inference.backends import Choice
from server.inference.classifier import Classifier
from server.model_folder import read_model_folder
from server.settings import Settings
from tests.support.servers import Gated


@contextmanager
def classifier_of(folder: Path, backend: Gated, **settings: Any) -> Iterator[Classifier]:  # noqa: ANN401 - whatever Settings takes
    made = Classifier(Choice(read_model_folder(folder, ("int8",)), backend), Settings(workers=1, **settings))
    yield made
    made.close()


def test_the_predictions_are_in_the_order_of_the_texts_with_the_time_of_each_stage(folder: Path) -> None:
    with classifier_of(folder, Gated()) as classifier:
        answer = asyncio.run(classifier.classify(["goal", "market " * 50, "vote"], timeout_seconds=5))
    assert [prediction.truncated for prediction in answer.predictions] == [False, True, False]
    assert answer.tokens == 3 + 16 + 3
    assert answer.stages["tokenize"][1] <= answer.stages["queue"][1] <= answer.stages["infer"][1]
    assert [part.partition(";")[0] for part in answer.server_timing().split(", ")] == ["queue", "tokenize", "infer"]


def test_a_request_that_the_tokenizer_fails_on_fails_alone_and_returns_its_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with classifier_of(folder, Gated()) as classifier:
        works = classifier.encoder.tokenize

        def fails_on_vote(texts: list[str]) -> Any:  # noqa: ANN401 - the library's type
            if "vote" in texts:
                raise ValueError("a text that it cannot read")
            return works(texts)

        monkeypatch.setattr(classifier.encoder, "tokenize", fails_on_vote)

        async def classify() -> list[Any]:
            pending = [classifier.classify([text], timeout_seconds=5) for text in ("goal", "vote", "bank")]
            return await asyncio.gather(*pending, return_exceptions=True)

        goal, vote, bank = asyncio.run(classify())
        assert (len(goal.predictions), len(bank.predictions)) == (1, 1)
        assert str(vote) == "a text that it cannot read"
        assert classifier.queue.size == (0, 0)


def test_a_deadline_alone_ends_a_request_and_its_text_is_never_computed(folder: Path) -> None:
    backend = Gated()
    backend.open.clear()
    with classifier_of(folder, backend) as classifier:

        async def classify() -> None:
            first = asyncio.create_task(classifier.classify(["goal"], timeout_seconds=5))
            while not classifier.busy_workers:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0.005)
            with pytest.raises(DeadlineExceededError, match="no answer within 50 ms"):
                await classifier.classify(["late"], timeout_seconds=0.05)
            backend.open.set()
            assert (await first).predictions

        asyncio.run(classify())
    assert backend.texts == 1


def test_everything_admitted_before_it_closes_is_answered(folder: Path) -> None:
    with classifier_of(folder, Gated()) as classifier:

        async def classify() -> int:
            pending = [asyncio.create_task(classifier.classify(["goal"] * 3, timeout_seconds=5)) for _ in range(20)]
            await asyncio.sleep(0)  # each is admitted
            classifier.close()
            return sum(len(answer.predictions) for answer in await asyncio.gather(*pending))

        assert asyncio.run(classify()) == 60
        for thread in [one for one in threading.enumerate() if one in classifier._threads]:
            thread.join(5)
            assert not thread.is_alive()
