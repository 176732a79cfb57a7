"""helm/serving: the server's settings reach it, it gets its model, it stops as it should, and others find it."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import fetch
from server.http.server import _ANSWER_SECONDS
from server.settings import Settings
from tests.conftest import DISTRINEWS
from tests.support.charts import HELM, RELEASES, HelmError, only, run_helm, template
from tests.support.fetching import fetch_model
from tests.support.model_folder import write_model_folder
from tests.support.tools import Release

pytestmark = pytest.mark.slow  # the module takes seconds

CANARY = "news-distrinews-serving-canary"


def pod(*sets: str, values: str = "default-values.yaml", name: str = "news-distrinews-serving") -> dict[str, Any]:
    spec: dict[str, Any] = only(template("serving", values, *sets), "Deployment", name)["spec"]["template"]["spec"]
    return spec


def server_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = spec["containers"][0]
    assert container["name"] == "server"
    return container


def environment(spec: Mapping[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in server_of(spec)["env"]}


def refused(*sets: str, values: str = "default-values.yaml", release: Release = "v37") -> str:
    with pytest.raises(HelmError) as error:
        template("serving", values, *sets, release=release)
    return str(error.value)


WRONG = [
    ("replica=3", "", "replica"),
    ('autoscaling={"min": 1}', "autoscaling", "min"),
    ('settings={"max_batch_text": 1}', "settings", "max_batch_text"),
    ('canary={"model": {"url": "s3://a/b"}}', "canary[./]model", "url"),
    ('startupProbe={"httpget": {}}', "startupProbe", "httpget"),
    ('settings={"workers": 0}', "settings[./]workers", "1"),
    ('settings={"port": 80}', "settings", "port"),
    ('model={"uri": "s3:/a/b"}', "model[./]uri", "pattern"),
    ('model={"sha256": "abc"}', "model[./]sha256", "pattern"),
    ('autoscaling={"kind": "vpa"}', "autoscaling[./]kind", "hpa"),
]


@pytest.mark.parametrize(("fault", "release"), list(zip(WRONG, cycle(RELEASES), strict=False)))
def test_a_wrong_value_is_refused_with_its_path(fault: tuple[str, str, str], release: Release) -> None:
    wrong, path, name = fault
    with pytest.raises(HelmError, match=rf"(?s){path}.*{name}"):
        template("serving", "default-values.yaml", wrong, release=release)


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        (('model={"uri": ""}',), "model.uri is required"),
        (('canary={"enabled": true, "model": {"uri": "s3://a/b"}}',), "canary.enabled needs httpRoute.enabled"),
        (('canary={"enabled": true}',), "canary.enabled needs canary.model.uri"),
        (('httpRoute={"enabled": true}',), "needs httpRoute.parentRefs"),
        (('ingress={"enabled": true}',), "needs ingress.hosts"),
        (('autoscaling={"cpuUtilization": null}',), "to scale by"),
        (('autoscaling={"minReplicas": 11}',), "minReplicas is 11, more than autoscaling.maxReplicas, 10"),
        (('autoscaling={"kind": "keda", "queuedTexts": 4}',), "needs autoscaling.prometheusAddress"),
        (('prometheusRule={"enabled": true}',), "needs serviceMonitor.enabled"),
        (("metricsPort=8080",), "containerPort and metricsPort are both 8080"),
    ],
)
def test_values_that_need_others_are_refused_with_what_they_need(sets: tuple[str, ...], named: str) -> None:
    assert named in " ".join(refused(*sets).split())


@pytest.mark.parametrize(("kind", "owner"), [("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")])
def test_the_autoscaler_owns_the_replica_count(kind: str, owner: str) -> None:
    objects = template("serving", "default-values.yaml", f'autoscaling={{"kind": "{kind}"}}')
    assert "replicas" not in only(objects, "Deployment")["spec"]
    assert only(objects, owner)["spec"]["scaleTargetRef"]["name"] == "news-distrinews-serving"


def test_without_an_autoscaler_the_values_own_it() -> None:
    objects = template("serving", "default-values.yaml", 'autoscaling={"kind": "none"}', "replicas=0")
    assert only(objects, "Deployment")["spec"]["replicas"] == 0
    assert not {"HorizontalPodAutoscaler", "ScaledObject"} & {entry["kind"] for entry in objects}


def test_pods_can_be_scaled_by_the_queue() -> None:
    wanted = '{"queuedTexts": 8, "cpuUtilization": null, "prometheusAddress": "http://prometheus:9090"}'
    sets = (f"autoscaling={wanted}", 'serviceMonitor={"enabled": true}')
    (metric,) = only(template("serving", "default-values.yaml", *sets), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "distrinews_queue_texts"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "8"}
    keda = only(template("serving", "default-values.yaml", *sets, 'autoscaling.kind="keda"'), "ScaledObject")
    (trigger,) = keda["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == "8"
    assert trigger["metadata"]["serverAddress"] == "http://prometheus:9090"


def test_settings_reach_the_server_as_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        "max_queued_tokens": 2_000_000, "max_text_characters": 1_000_000, "timeout_seconds": 0.25, "drain_seconds": 0, "engine": "onnx",
        "log_level": "info", "cors_origins": ["https://news.example", "https://other.example"], "oidc_issuer": None,
    }  # fmt: skip
    for name, value in environment(pod(f"settings={json.dumps(wanted)}")).items():
        assert "e+" not in value
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert {name: _plain(getattr(settings, name)) for name in wanted} == wanted
    assert (settings.host, settings.port, settings.metrics_port) == ("0.0.0.0", 8080, 9080)  # noqa: S104 - compared


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("sets", "drain"),
    [
        ((), Settings.model_fields["drain_seconds"].default),
        (('settings={"drain_seconds": 0}',), 0),
        (('settings={"drain_seconds": 40.5}',), 40.5),
        (('lifecycle={"preStop": {"sleep": {"seconds": 30}}}',), 35),
    ],
)
def test_a_pod_has_the_time_that_its_server_takes_to_stop(sets: tuple[str, ...], drain: float) -> None:
    grace = pod(*sets)["terminationGracePeriodSeconds"]
    assert drain + _ANSWER_SECONDS < grace <= drain + _ANSWER_SECONDS + 6


def test_the_grace_period_can_be_set() -> None:
    assert pod("terminationGracePeriodSeconds=90")["terminationGracePeriodSeconds"] == 90


def test_the_server_starts_like_the_pod_and_passes_probes_and_helm_test(tmp_path: Path) -> None:
    model = write_model_folder(tmp_path / "model")
    http, metrics = _free_port(), _free_port()
    sets = (
        f"containerPort={http}",
        f"metricsPort={metrics}",
        'settings={"engine": "onnx", "host": "127.0.0.1", "drain_seconds": 0}',
    )
    spec = pod(*sets)
    container = server_of(spec)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": http, "metrics": metrics}
    started = subprocess.Popen(
        [DISTRINEWS, *container["command"][1:], str(model)], env={"PATH": os.defpath} | environment(spec)
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{http}") as client:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                _wait_for(client, container[probe]["httpGet"]["path"])
                assert container[probe]["httpGet"]["port"] == "http"
            assert "distrinews_queue_texts" in httpx.get(f"http://127.0.0.1:{metrics}/metrics").text
            test = only(template("serving", "default-values.yaml", *sets), "Pod", "news-distrinews-serving-test")
            (tester,) = test["spec"]["containers"]
            assert [*tester["command"], tester["args"][0]] == [
                "distrinews",
                "predict",
                "http://news-distrinews-serving:80",
            ]
            predict = [DISTRINEWS, "predict", str(client.base_url), *tester["args"][1:]]
            assert '"label"' in subprocess.run(predict, check=True, timeout=60, capture_output=True, text=True).stdout
    finally:
        started.terminate()
        assert started.wait(timeout=30) == 0


def _wait_for(client: httpx.Client, path: str) -> None:
    until = time.monotonic() + 30
    while True:
        with suppress(httpx.TransportError):
            if client.get(path).status_code == 200:
                return
        assert time.monotonic() < until, path
        time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_of_a_claim_only_the_model_s_folder_is_mounted_and_its_checksum_compared(tmp_path: Path) -> None:
    spec = pod()
    (step,) = spec["initContainers"]
    for container in (step, server_of(spec)):
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "model")
        assert mount == {"name": "model", "mountPath": "/model", "readOnly": True, "subPath": "20260101-120000/model"}
    assert spec["volumes"][0] == {"name": "model", "persistentVolumeClaim": {"claimName": "distrinews-workspace"}}
    assert step["command"] == ["distrinews", "fetch"]
    assert step["args"][0] == "file:///model"
    write_model_folder(tmp_path)
    with pytest.raises(SystemExit):  # the digest of the values is of another model
        fetch_model([tmp_path.as_uri(), *step["args"][1:]])
    fetch_model([tmp_path.as_uri()])


@pytest.mark.parametrize("uri", ["s3://models/news/1", "gs://models/news", "hf://someone/news@v1", "https://host/news"])
def test_a_model_elsewhere_is_fetched_before_the_server_starts(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pod(f'model.uri="{uri}"', 'settings={"engine": "onnx"}', values="s3-keda-values.yaml")
    (step,) = spec["initContainers"]
    called: list[tuple[object, object]] = []

    def noted(*args: object, **named: object) -> int:
        called.append((args, named))
        return 0

    monkeypatch.setattr(fetch, "fetch", noted)
    for entry in step["env"]:
        monkeypatch.setenv(entry["name"], entry["value"])
    fetch_model(step["args"])
    assert called == [((uri, Path("/model")), {"sha256": None, "variants": ("int8", "fp32")})]
    assert step["envFrom"] == [{"secretRef": {"name": "s3-credentials"}}]
    assert "envFrom" not in server_of(spec), "the server needs no key of the store"
    assert spec["volumes"][0] == {"name": "model", "emptyDir": {"sizeLimit": "2Gi"}}
    assert {mount["readOnly"] for mount in server_of(spec)["volumeMounts"] if mount["name"] == "model"} == {True}


def test_a_model_in_an_image_is_mounted() -> None:
    spec = pod(values="oci-everything-values.yaml", name="news")
    assert spec["volumes"][0]["image"]["reference"] == "registry.example.com/models/news:20260101"
    assert server_of(spec)["args"] == ["/model/models/news"]
    assert spec["initContainers"][0]["args"][0] == "file:///model/models/news"


def test_api_keys_come_from_the_secret() -> None:
    spec = pod(values="s3-keda-values.yaml")
    assert environment(spec)["DISTRINEWS_API_KEYS_FILE"] == "/etc/distrinews/api-keys"
    assert {"name": "api-keys", "secret": {"secretName": "callers"}} in spec["volumes"]
    test = only(template("serving", "s3-keda-values.yaml"), "Pod", "news-distrinews-serving-test")
    (key,) = test["spec"]["containers"][0]["env"]
    assert key == {
        "name": "DISTRINEWS_API_KEY",
        "valueFrom": {"secretKeyRef": {"name": "caller", "key": "api-key"}},
    }
    without = template("serving", "s3-keda-values.yaml", 'tests.apiKeySecret=""')
    assert "Pod" not in {entry["kind"] for entry in without}, "it could only be turned away"


def selected(selector: Mapping[str, str], objects: list[dict[str, Any]]) -> set[str]:
    """Returns the names of the objects whose pods have all these labels."""
    templates = {
        entry["metadata"]["name"]: (entry["spec"]["template"] if entry["kind"] == "Deployment" else entry)["metadata"]
        for entry in objects
        if entry["kind"] in {"Deployment", "Pod"}
    }
    return {name for name, metadata in templates.items() if selector.items() <= metadata["labels"].items()}


def test_everything_selects_the_pods_that_it_should() -> None:
    objects = template("serving", "canary-values.yaml")
    name = "news-distrinews-serving"
    services = {entry["metadata"]["name"]: entry["spec"] for entry in objects if entry["kind"] == "Service"}
    assert selected(services[name]["selector"], objects) == {name}
    assert selected(services[CANARY]["selector"], objects) == {CANARY}
    assert selected(services[f"{name}-metrics"]["selector"], objects) == {name, CANARY}
    assert selected(only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"], objects) == {name, CANARY}
    assert selected(only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"], objects) == {name}
    monitor = only(objects, "ServiceMonitor")["spec"]
    watched = [
        entry["metadata"]["name"]
        for entry in objects
        if entry["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= entry["metadata"]["labels"].items()
    ]
    assert watched == [f"{name}-metrics"]
    assert [port["name"] for port in services[watched[0]]["ports"]] == [monitor["endpoints"][0]["port"]]
    for deployment in (name, CANARY):
        spec = only(objects, "Deployment", deployment)["spec"]
        assert selected(spec["selector"]["matchLabels"], objects) == {deployment}
        for constraint in spec["template"]["spec"]["topologySpreadConstraints"]:
            assert selected(constraint["labelSelector"]["matchLabels"], objects) == {deployment}


def test_the_canary_has_its_own_model_and_its_share_of_the_requests() -> None:
    objects = template("serving", "canary-values.yaml")
    (rule,) = only(objects, "HTTPRoute")["spec"]["rules"]
    weights = {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
    assert weights == {"news-distrinews-serving": 80, CANARY: 20}
    canary, stable = pod(values="canary-values.yaml", name=CANARY), pod(values="canary-values.yaml")
    assert canary["initContainers"][0]["args"][0] == "gs://models/news/next"
    assert stable["initContainers"][0]["args"][0] == "hf://someone/news@0123abc"
    assert server_of(canary)["image"] == "distrinews-server:next"
    assert only(objects, "Deployment", CANARY)["spec"]["replicas"] == 2


def test_a_server_whose_model_is_mounted_can_reach_nothing() -> None:
    assert only(template("serving"), "NetworkPolicy")["spec"]["egress"] == []


def test_a_server_that_fetches_reaches_names_and_the_store() -> None:
    dns, store = only(template("serving", "s3-keda-values.yaml"), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for port in dns["ports"]] == [53, 53]
    assert [port["port"] for port in store["ports"]] == [443, 9000]


def test_a_server_with_an_issuer_of_tokens_can_reach_it() -> None:
    settings = '{"oidc_issuer": "https://login.example", "oidc_audience": "news"}'
    policy = only(template("serving", "default-values.yaml", f"settings={settings}"), "NetworkPolicy")
    assert [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]] == [53, 53, 443]


def test_callers_can_be_limited_but_helm_test_always_gets_through() -> None:
    objects = template("serving", "oci-everything-values.yaml")
    requests, metrics = only(objects, "NetworkPolicy", "news")["spec"]["ingress"]
    namespaces, test = requests["from"]
    assert namespaces["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ingress-nginx"}
    assert selected(test["podSelector"]["matchLabels"], objects) == {"news-test"}
    assert requests["ports"] == [{"port": 8080}]
    assert metrics["ports"] == [{"port": 9080}]


def test_a_digest_wins_over_a_tag() -> None:
    digest = f"sha256:{'0' * 64}"
    assert server_of(pod())["image"].startswith("distrinews-server:")
    assert server_of(pod('image={"tag": "1"}'))["image"] == "distrinews-server:1"
    assert server_of(pod(f'image={{"tag": "1", "digest": "{digest}"}}'))["image"] == f"distrinews-server@{digest}"


def notes(values: str) -> str:
    chart = HELM / "serving"
    flags = ("--namespace", "prod", "--values", str(chart / "ci" / values), "--dry-run=client")
    return run_helm("v37", "install", "news", str(chart), *flags).partition("NOTES:")[2]


def test_the_notes_have_the_next_commands() -> None:
    output = notes("default-values.yaml")
    assert "kubectl -n prod rollout status deployment/news-distrinews-serving" in output
    assert "helm -n prod test news --logs" in output
    assert "port-forward service/news-distrinews-serving 8080:80" in output
    assert "ReadWriteMany" in output
    assert "X-API-Key" in notes("s3-keda-values.yaml")
    assert "curl https://news.example.com/predict" in notes("oci-everything-values.yaml")
    canary = notes("canary-values.yaml")
    assert "curl http://news.example.com/predict" in canary
    assert "--set canary.enabled=false" in canary
    assert "--set model.uri=gs://models/news/next --set model.version=next" in canary


def test_openshift_can_choose_the_user() -> None:
    context = pod('podSecurityContext={"runAsUser": null, "runAsGroup": null}')["securityContext"]
    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
