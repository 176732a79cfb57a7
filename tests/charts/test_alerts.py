"""The alerts fire when they should and not otherwise, and alerts and dashboard query metrics that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from server.observability.metrics import COUNTERS, GAUGES, HISTOGRAMS, PREFIX
from tests.support.charts import only, template

pytestmark = pytest.mark.slow  # the module takes seconds

SERIES = 'namespace="prod", service="news-distrinews-serving-metrics"'
OTHERS = {  # metrics of prometheus_client and kube-state-metrics
    "process_cpu_seconds_total": {"pod"},
    "process_resident_memory_bytes": {"pod"},
    "kube_pod_container_status_waiting_reason": {"pod", "reason", "container"},
    "kube_pod_init_container_status_waiting_reason": {"pod", "reason", "container"},
}
TARGET = {"namespace", "service", "pod", "app_kubernetes_io_component"}
"""Labels that Prometheus adds when it scrapes as the ServiceMonitor defines."""


def metrics() -> dict[str, set[str]]:
    """Every series that there is, with its labels."""
    found = {PREFIX + name: set(labels) for name, (_, labels) in (COUNTERS | GAUGES).items()}
    for name, (_, labels, _) in HISTOGRAMS.items():
        for suffix, more in (("_bucket", {"le"}), ("_sum", set[str]()), ("_count", set[str]())):
            found[PREFIX + name + suffix] = {*labels, *more}
    return found | OTHERS


def rules() -> list[dict[str, Any]]:
    (group,) = only(template("serving", "canary-values.yaml"), "PrometheusRule")["spec"]["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def dashboard() -> dict[str, Any]:
    objects = template("serving", "canary-values.yaml")
    data = only(objects, "ConfigMap", "news-distrinews-serving-dashboard")["data"]
    found: dict[str, Any] = json.loads(data["distrinews.json"])
    return found


def queries() -> list[str]:
    found = [rule["expr"] for rule in rules()]
    found += [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    keda = only(template("serving", "s3-keda-values.yaml"), "ScaledObject")["spec"]["triggers"]
    found += [trigger["metadata"]["query"] for trigger in keda if trigger["type"] == "prometheus"]
    return [query.replace("$__rate_interval", "5m") for query in found]


def selectors(node: Any) -> list[Any]:  # noqa: ANN401 - the parser's nodes share no class
    """All selectors of series in a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        return [node]
    parts = (getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param"))
    children = [*parts, *getattr(node, "args", [])]
    return [found for child in children if child is not None for found in selectors(child)]


def test_every_query_is_for_series_and_labels_that_exist() -> None:
    known = metrics()
    queried = set()
    for query in queries():
        found = selectors(promql_parser.parse(query))
        assert found, query
        for selector in found:
            assert selector.name in known, query
            matched = {matcher.name for matcher in selector.matchers.matchers}
            assert matched <= known[selector.name] | TARGET, query
            queried.add(selector.name)
        grouped = {name for names in re.findall(r"by \(([^)]*)\)", query) for name in re.split(r",\s*", names)}
        assert grouped <= set().union(*(known[selector.name] for selector in found)) | TARGET, query
    assert len(queried) > 20


def test_a_label_matcher_of_the_checker_is_seen() -> None:
    (selector,) = selectors(promql_parser.parse('sum by (le) (rate(a_bucket{b="c"}[5m]))'))
    assert (selector.name, [matcher.name for matcher in selector.matchers.matchers]) == ("a_bucket", ["b"])


def test_every_panel_has_a_meaning_and_none_covers_another() -> None:
    taken = set[tuple[int, int]]()
    for panel in dashboard()["panels"]:
        assert panel["title"]
        assert panel["description"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        taken |= cells


REQUESTS = f'distrinews_http_requests_total{{{SERIES}, route="/predict", code="%s"}}'
LATENCY = f'distrinews_http_request_duration_seconds_bucket{{{SERIES}, route="%s", le="%s"}}'
WAITING = 'kube_pod_%scontainer_status_waiting_reason{namespace="prod", pod="%s-1", reason="CrashLoopBackOff"}'
PREDICTIONS = f'distrinews_predictions_total{{{SERIES}, label="%s"}}'
READY = {f'distrinews_ready{{{SERIES}, pod="a"}}': "1x2000"}
"""Series that a healthy release always has."""


def queue(kind: str, used: int, limit: int) -> dict[str, str]:
    return {
        f'distrinews_queue_{kind}{{{SERIES}, pod="a"}}': f"{used}x60",
        f'distrinews_queue_{kind}_limit{{{SERIES}, pod="a"}}': f"{limit}x60",
    }


def latency(route: str, *, slow: bool) -> dict[str, str]:
    within = "0+0x60" if slow else "0+60x60"
    return {LATENCY % (route, "0.5"): within, LATENCY % (route, "1"): "0+60x60", LATENCY % (route, "+Inf"): "0+60x60"}


def mix(sports: str, world: str) -> dict[str, str]:
    return {PREDICTIONS % "Sports": sports, PREDICTIONS % "World": world}


DAY = 24 * 60  # minutes; a whole week before would take promtool a minute
FIRES: list[tuple[str, dict[str, str], int]] = [
    ("DistriNewsLatency", latency("/predict", slow=True), 30),
    ("DistriNewsErrors", {REQUESTS % 200: "0+60x60", REQUESTS % 504: "0+3x60"}, 30),
    ("DistriNewsSaturated", queue("texts", 450, 512), 30),
    ("DistriNewsSaturated", queue("tokens", 30000, 32768), 30),
    ("DistriNewsSaturated", {f'distrinews_rejected_requests_total{{{SERIES}, reason="queue_full"}}': "0+1x60"}, 30),
    ("DistriNewsCrashLoop", {WAITING % ("", "news-distrinews-serving"): "1x60"}, 30),
    (
        "DistriNewsCrashLoop",
        {WAITING % ("init_", "news-distrinews-serving"): "1 1 _ _ 1 1 _ _ 1 1 _ _ 1 1 1 1 1 1"},
        17,
    ),
    ("DistriNewsLabelDrift", mix(f"0+50x{DAY} {50 * DAY}+0x120", f"0+50x{DAY} {50 * DAY}+100x120"), DAY + 110),
]
QUIET: list[tuple[str, dict[str, str], int]] = [
    ("nothing happens", {}, 30),
    ("quick requests", latency("/predict", slow=False), 30),
    ("only the documentation is slow", latency("/docs", slow=True), 30),
    ("one in a thousand fails", {REQUESTS % 200: "0+1000x60", REQUESTS % 500: "0+1x60"}, 30),
    ("clients send what is wrong", {REQUESTS % 200: "0+60x60", REQUESTS % 422: "0+60x60"}, 30),
    (
        "a full queue for a minute",
        {**queue("texts", 0, 512), f'distrinews_queue_texts{{{SERIES}, pod="a"}}': "0x20 512 0x30"},
        22,
    ),
    ("half a queue", queue("texts", 250, 512), 30),
    ("a pod of others crashes", {WAITING % ("", "other"): "1x60"}, 30),
    (
        "the same mix, more of it",
        mix(f"0+50x{DAY} {50 * DAY}+500x120", f"0+50x{DAY} {50 * DAY}+500x120"),
        DAY + 110,
    ),
    ("too few to compare", mix(f"0+1x{DAY} {DAY}+0x120", f"0+1x{DAY} {DAY}+2x120"), DAY + 110),
]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_alerts_fire_when_they_should_and_not_otherwise(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "alerts", "rules": rules()}]}))
    cases = [_case(alert, series | READY, minute, {alert}) for alert, series, minute in FIRES]
    cases += [_case(name, series | READY, minute, set()) for name, series, minute in QUIET]
    cases += [
        _case("no pod is ready", {f'distrinews_ready{{{SERIES}, pod="a"}}': "1x10 0x30"}, 15, {"DistriNewsNoReadyPod"}),
        _case("no pod is there", {}, 15, {"DistriNewsNoReadyPod"}),
    ]
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests), encoding="utf-8")
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {rule["alert"] for rule in rules()} == {alert for alert, _, _ in FIRES} | {"DistriNewsNoReadyPod"}


def _case(name: str, series: dict[str, str], minute: int, firing: set[str]) -> dict[str, Any]:
    """Expects just these alerts after so many minutes of these series; it queries them, for labels do not matter here."""
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(firing)]
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'max by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": samples,
            }
        ],
    }
