"""Metrics for Prometheus: every name with its meaning and labels, and the source of its values."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from server.http.lifecycle import Lifecycle
from server.inference.classifier import Classifier, ClassifierEvents, Prediction, Request
from server.inference.queue import Dropped, QueueEntry
from server.observability.logs import Rejection, RequestRecord
from server.settings import Settings

PREFIX = "distrinews_"

COUNTERS = {
    "http_requests_total": ("Requests answered, by the template of the route and the status code.", ("route", "code")),
    "rejected_requests_total": ("Requests to a route that got no answer, by reason.", ("reason",)),
    "dropped_texts_total": ("Texts that left the queue uncomputed since nobody waited any more.", ("reason",)),
    "truncated_texts_total": ("Texts longer than the model reads.", ()),
    "tokens_total": ("Tokens computed: of texts, and of the padding that batches need.", ("kind",)),
    "predictions_total": ("Texts answered, by label.", ("label",)),
}
GAUGES = {
    "http_requests_in_flight": ("Requests that are not answered yet.", ()),
    "queue_texts": ("Texts that wait for a worker.", ()),
    "queue_tokens": ("Tokens of the texts that wait.", ()),
    "queue_texts_limit": ("Texts that may wait.", ()),
    "queue_tokens_limit": ("Tokens of waiting texts that there may be.", ()),
    "workers": ("Batches that can be computed at the same time.", ()),
    "workers_busy": ("Batches that are being computed.", ()),
    "ready": ("1 if the server takes requests, as /readyz reports, else 0.", ()),
    "model_info": ("1; the labels name what is served.", ("version", "engine", "variant", "sha256")),
}

_SECONDS = (.001, .002, .003, .005, .0075, .01, .015, .02, .03, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 10)  # fmt: skip
_SHORT = (.00005, .0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .5)  # fmt: skip
HISTOGRAMS = {
    "http_request_duration_seconds": ("From the head of a request to the end of its answer.", ("route",), _SECONDS),
    "tokenize_duration_seconds": ("Of the tokenizer, for the texts of each request.", (), _SHORT),
    "queue_duration_seconds": ("For which each text waited for a worker.", (), (0.0005, *_SECONDS)),
    "inference_duration_seconds": ("Of the model, for each batch.", (), (0.0005, *_SECONDS)),
    "batch_texts": ("Texts of each batch.", (), (1, 2, 4, 8, 16, 32, 64, 128)),
    "batch_padding_ratio": ("Share of padding among the tokens of each batch.", (), (0, .02, .05, .1, .2, .3, .5)),
    "prediction_confidence": (
        "Probability of the label of each text.", (), (.3, .4, .5, .6, .7, .8, .9, .95, .99, 1)
    ),
}  # fmt: skip
NAMES = frozenset(PREFIX + name for name in (*COUNTERS, *GAUGES, *HISTOGRAMS))

_DROPPED: Mapping[Dropped, Rejection] = {"deadline": "deadline", "left": "client_left"}

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter and histogram, which hardly anybody reads


class Metrics(ClassifierEvents):
    """Holds the metrics of one server in a registry of its own; gauges are computed at each scrape."""

    def __init__(self, classifier: Classifier, lifecycle: Lifecycle, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = 0
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._counters = {
            name: Counter(PREFIX + name, meaning, labels, registry=self.registry)
            for name, (meaning, labels) in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(PREFIX + name, meaning, labels, buckets=buckets, registry=self.registry)
            for name, (meaning, labels, buckets) in HISTOGRAMS.items()
        }
        self._add_gauges(classifier, lifecycle, settings)
        self._begin_at_zero(classifier.folder.labels)
        classifier.events = self

    def request_started(self) -> None:
        self.in_flight += 1

    def request_ended(self, record: RequestRecord) -> None:
        self.in_flight -= 1
        self._counted("http_requests_total", record.route, record.status).inc()
        self._observed("http_request_duration_seconds", record.route).observe(record.seconds)
        if record.rejected:
            self._counted("rejected_requests_total", record.rejected).inc()

    def tokenized(self, seconds: float) -> None:
        self._histograms["tokenize_duration_seconds"].observe(seconds)

    def computed(self, batch: Sequence[QueueEntry[Request]], *, started: float, seconds: float) -> None:
        lengths = [len(entry) for entry in batch]
        tokens, padded = sum(lengths), max(lengths) * len(lengths)
        for entry in batch:
            self._histograms["queue_duration_seconds"].observe(started - entry.arrived)
        self._histograms["inference_duration_seconds"].observe(seconds)
        self._histograms["batch_texts"].observe(len(batch))
        self._histograms["batch_padding_ratio"].observe(1 - tokens / padded)
        self._counted("tokens_total", "text").inc(tokens)
        if padded > tokens:
            self._counted("tokens_total", "padding").inc(padded - tokens)

    def predicted(self, prediction: Prediction) -> None:
        self._counted("predictions_total", prediction.label).inc()
        self._histograms["prediction_confidence"].observe(prediction.confidence)
        if prediction.truncated:
            self._counters["truncated_texts_total"].inc()

    def dropped(self, reason: Dropped) -> None:
        self._counted("dropped_texts_total", _DROPPED[reason]).inc()

    # The library's own way from labels to a series makes strings and takes a lock.
    @cache  # noqa: B019 - there is one of this class, and it lives as long as the server
    def _counted(self, name: str, *labels: object) -> Counter:
        return self._counters[name].labels(*labels)

    @cache  # noqa: B019 - as above
    def _observed(self, name: str, *labels: object) -> Histogram:
        return self._histograms[name].labels(*labels)

    def _add_gauges(self, classifier: Classifier, lifecycle: Lifecycle, settings: Settings) -> None:
        gauges = {
            name: Gauge(PREFIX + name, meaning, labels, registry=self.registry)
            for name, (meaning, labels) in GAUGES.items()
        }
        gauges["http_requests_in_flight"].set_function(lambda: self.in_flight)
        gauges["queue_texts"].set_function(lambda: classifier.queue.size[0])
        gauges["queue_tokens"].set_function(lambda: classifier.queue.size[1])
        gauges["queue_texts_limit"].set(settings.max_queued_texts)
        gauges["queue_tokens_limit"].set(settings.max_queued_tokens)
        gauges["workers"].set(classifier.workers)
        gauges["workers_busy"].set_function(lambda: classifier.busy_workers)
        gauges["ready"].set_function(lambda: lifecycle.not_ready_reason() is None)
        model = classifier.folder
        gauges["model_info"].labels(version("distrinews"), classifier.backend.name, model.variant, model.sha256).set(1)

    def _begin_at_zero(self, labels: Sequence[str]) -> None:
        """Creates every series at zero: one that appears with its first event hides that event from rate()."""
        for label in labels:
            self._counters["predictions_total"].labels(label)
        for kind in ("text", "padding"):
            self._counters["tokens_total"].labels(kind)
        for reason in get_args(Rejection):
            self._counters["rejected_requests_total"].labels(reason)
        for dropped in _DROPPED.values():
            self._counters["dropped_texts_total"].labels(dropped)
