"""Every chart is correct in all its value sets, with every Helm and for every Kubernetes."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.job.pod_security import violations
from tests.support.charts import CHARTS, HELM, RELEASES, VALUE_SETS, HelmError, pods, run_helm, template
from tests.support.kubernetes_schemas import VERSIONS, faults, is_kubernetes_own
from tests.support.tools import Release, helm

pytestmark = pytest.mark.slow  # the module takes seconds

every_value_set = pytest.mark.parametrize(("chart", "values"), VALUE_SETS)
every_chart = pytest.mark.parametrize("chart", CHARTS)


@pytest.fixture(scope="module", autouse=True)
def _rendered_together() -> None:
    """All renderings and lintings, as many at the same time as there are processors here; the tests find them done."""
    for release in RELEASES:
        helm(release)  # fetched one after the other
    with ThreadPoolExecutor(2) as pool:
        work = [(release, *value_set) for release in RELEASES for value_set in VALUE_SETS]
        list(pool.map(lambda one: template(one[1], one[2], release=one[0]), work))


@every_value_set
def test_every_helm_makes_the_same_objects(chart: str, values: str) -> None:
    first, *others = (template(chart, values, release=release) for release in RELEASES)
    assert len(first) >= 2
    for other in others:
        assert sorted(other, key=_identity) == sorted(first, key=_identity)


def _identity(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["kind"], entry["metadata"]["name"]


@every_value_set
def test_every_kubernetes_takes_the_objects(chart: str, values: str) -> None:
    checked = 0
    for entry in filter(is_kubernetes_own, template(chart, values)):
        for version in VERSIONS:
            assert faults(entry, version) == [], (entry["kind"], version)
            checked += 1
    assert checked >= 2 * len(VERSIONS)
    assert len(VERSIONS) >= 7


@pytest.mark.parametrize("release", RELEASES)
@every_chart
def test_helm_lint_reports_nothing(chart: str, release: Release) -> None:
    for name in (values for which, values in VALUE_SETS if which == chart):
        file = str(HELM / chart / "ci" / name)
        assert "0 chart(s) failed" in run_helm(release, "lint", "--strict", str(HELM / chart), "--values", file)


@every_value_set
def test_every_pod_is_restricted_and_has_no_token(chart: str, values: str) -> None:
    for pod in pods(template(chart, values)):
        assert list(violations(pod["spec"])) == []
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False, "a Service called distrinews would set DISTRINEWS_PORT"


def test_the_checker_of_pods_finds_forbidden_settings() -> None:
    (pod, *_) = pods(template("serving"))
    good = json.loads(json.dumps(pod["spec"]))
    for spoil, found in {
        '{"hostNetwork": true}': "hostNetwork",
        '{"securityContext": {}}': "may run as root",
        '{"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}': "hostPath",
        '{"initContainers": [{"name": "a", "securityContext": {"privileged": true}}]}': "may gain privileges",
        '{"containers": [{"name": "a", "ports": [{"hostPort": 1}]}]}': "takes a port of the node",
    }.items():
        assert any(found in fault.message for fault in violations(good | json.loads(spoil))), spoil


@every_value_set
def test_every_object_has_the_labels_that_people_expect(chart: str, values: str) -> None:
    for entry in template(chart, values):
        labels = entry["metadata"]["labels"]
        expected = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/part-of"}
        assert expected <= set(labels), entry["kind"]
        assert entry["metadata"]["namespace"] == "prod", "a release has its objects in its namespace"


@every_chart
def test_names_stay_short_enough_for_kubernetes(chart: str) -> None:
    for _, values in (pair for pair in VALUE_SETS if pair[0] == chart):
        for entry in template(chart, values, name="a-release-whose-name-has-as-many-as-fifty-three-lett"):
            assert len(entry["metadata"]["name"]) <= 63
            assert all(len(str(value)) <= 63 for value in entry["metadata"]["labels"].values())


@every_chart
def test_the_chart_is_of_the_project_s_version(chart: str) -> None:
    facts = yaml.safe_load((HELM / chart / "Chart.yaml").read_text(encoding="utf-8"))
    assert facts["appVersion"] == facts["version"] == metadata.version("distrinews")
    assert {"artifacthub.io/license", "artifacthub.io/category"} <= set(facts["annotations"])


@every_chart
def test_a_kubernetes_that_is_too_old_is_refused(chart: str) -> None:
    values = str(HELM / chart / "ci" / "default-values.yaml")
    for release in RELEASES:
        with pytest.raises(HelmError, match=r"incompatible with Kubernetes v1\.30"):
            run_helm(release, "template", str(HELM / chart), "--values", values, "--kube-version", "1.30.9")


@every_chart
def test_an_upgrade_keeps_immutable_fields(chart: str, tmp_path: Path) -> None:
    later = shutil.copytree(HELM / chart, tmp_path / chart)
    facts = (later / "Chart.yaml").read_text(encoding="utf-8")
    (later / "Chart.yaml").write_text(re.sub(r"(?m)^(version|appVersion): .*", r"\1: 9.9.9", facts), encoding="utf-8")
    for _, values in (pair for pair in VALUE_SETS if pair[0] == chart):
        before = template(chart, values)
        after = template(chart, values, 'commonLabels={"team": "other"}', folder=later)
        assert [_fixed(entry) for entry in after] == [_fixed(entry) for entry in before]
        assert after != before


def _fixed(entry: dict[str, Any]) -> tuple[Any, ...]:
    spec = entry.get("spec") or {}
    return (*_identity(entry), spec.get("selector"), spec.get("podSelector"), spec.get("scaleTargetRef"))


def test_the_generated_parts_are_up_to_date_and_every_value_has_a_comment() -> None:
    done = subprocess.run(
        [sys.executable, HELM.parent / ".ci" / "charts", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@every_chart
def test_the_schema_and_the_values_name_the_same(chart: str) -> None:
    schema = json.loads((HELM / chart / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((HELM / chart / "values.yaml").read_text(encoding="utf-8"))
    assert set(schema["properties"]) - {"global"} == set(values)
    for path, properties in _own_properties(schema, values):
        assert properties.get("additionalProperties") is False, f"{path} takes anything"


def _own_properties(schema: dict[str, Any], values: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """The schema of each mapping whose keys are the chart's own, not Kubernetes' or people's."""
    found = [(path or "the chart", schema)]
    for key, value in values.items():
        part = schema["properties"].get(key)
        assert part is not None, f"{path}.{key} is not in the schema"
        if isinstance(value, dict) and "properties" in part and set(value) <= set(part["properties"]):
            found += _own_properties(part, value, f"{path}.{key}")
    return found
