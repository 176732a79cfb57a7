"""helm/training: everything that jobs need, under the names that manifests and launcher use, and no right too many."""

from typing import Any

import pytest
import yaml

from pipelines.cluster.permissions import Need
from pipelines.job.backends import backend
from pipelines.job.reconcile import needs_of
from tests.support.charts import HELM, RELEASES, VALUE_SETS, HelmError, only, rights, run_helm, template
from tests.support.tools import Release

pytestmark = pytest.mark.slow  # the module takes seconds

PLURALS = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}
"""Plurals of kinds whose resource is not just the kind with an s."""


def training(values: str = "default-values.yaml", *sets: str) -> list[dict[str, Any]]:
    return template("training", values, *sets)


def test_the_jobs_of_manifests_find_their_account_and_their_claim() -> None:
    job = yaml.safe_load((HELM.parent / "manifests" / "base" / "pytorchjob.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    objects = training()
    account = only(objects, "ServiceAccount", pod["serviceAccountName"])
    assert account["automountServiceAccountToken"] is False
    assert [only(objects, "PersistentVolumeClaim", claim["claimName"])["spec"]["accessModes"] for claim in claims] == [
        ["ReadWriteMany"]
    ]


def test_the_launcher_may_start_jobs_and_no_more() -> None:
    objects = training()
    needs = [*needs_of(backend("pytorchjob")), Need("kueue.x-k8s.io", "localqueues", ("get",))]
    wanted = {(need.group, need.resource): set(need.verbs) for need in needs}
    assert rights(only(objects, "Role", "distrinews-launcher")) == wanted
    (binding,) = (entry for entry in objects if entry["kind"] == "RoleBinding")
    assert binding["roleRef"]["name"] == "distrinews-launcher"
    assert [subject["name"] for subject in binding["subjects"]] == ["distrinews-launcher"]


def test_the_pods_of_jobs_are_bound_to_no_role() -> None:
    for _, values in (pair for pair in VALUE_SETS if pair[0] == "training"):
        for entry in training(values):
            if entry["kind"] == "RoleBinding":
                assert "distrinews-training" not in {subject["name"] for subject in entry["subjects"]}
            if entry["kind"] == "Role":
                assert not {"*", "bind", "escalate", "impersonate"} & set().union(*rights(entry).values())
                assert not {part for pair in rights(entry) for part in pair} & {"*"}


def test_the_deployer_may_make_every_object_of_the_serving_chart() -> None:
    objects = training("everything-values.yaml")
    deploys = rights(only(objects, "Role", "distrinews-launcher-deploy"))
    needed = {
        (entry["apiVersion"].rpartition("/")[0], PLURALS.get(entry["kind"], f"{entry['kind'].lower()}s"))
        for chart, values in VALUE_SETS
        if chart == "serving"
        for entry in template(chart, values)
    } | {("", "secrets")}
    assert len(needed) > 12
    for resource in needed:
        assert {"get", "list", "watch", "create", "patch", "update", "delete"} <= deploys[resource], resource
    assert needed == set(deploys) - {("apps", "replicasets"), ("", "pods/log")}, "nothing besides"
    binding = only(objects, "RoleBinding", "distrinews-launcher-deploy")
    assert {subject["name"] for subject in binding["subjects"]} == {"distrinews-launcher", "pipeline-runner"}
    assert "distrinews-launcher-deploy" not in {entry["metadata"]["name"] for entry in training()}, "only when enabled"


def test_pods_of_jobs_reach_each_other_on_every_port_and_names_and_the_hub() -> None:
    spec = only(training(), "NetworkPolicy", "distrinews-training")["spec"]
    (label,) = spec["podSelector"]["matchExpressions"]
    assert label == {"key": "training.kubeflow.org/job-name", "operator": "Exists"}
    assert spec["ingress"] == [{"from": [{"podSelector": spec["podSelector"]}]}]
    peers, dns, hub = spec["egress"]
    assert peers == {"to": [{"podSelector": spec["podSelector"]}]}
    assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {
        (port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")
    }
    assert hub == {"ports": [{"port": 443}]}


def test_uninstalling_keeps_the_runs_unless_the_values_disable_it() -> None:
    kept = only(training(), "PersistentVolumeClaim", "distrinews-workspace")["metadata"]["annotations"]
    assert kept == {"helm.sh/resource-policy": "keep"}
    claim = only(training("one-node-values.yaml"), "PersistentVolumeClaim", "distrinews-workspace")
    assert "annotations" not in claim["metadata"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


@pytest.mark.parametrize(
    "wanted",
    ["serviceAccount.create", "launcher.enabled", "workspace.create", "networkPolicy.enabled"],
)
def test_every_object_is_optional(wanted: str) -> None:
    assert len(training("default-values.yaml", f"{wanted}=false")) < len(training())
    kinds = {entry["kind"] for entry in training()}
    assert not kinds & {"ResourceQuota", "LimitRange", "LocalQueue"}


def test_the_queue_is_of_the_version_that_the_cluster_has() -> None:
    file = str(HELM / "training" / "ci" / "everything-values.yaml")
    command = (
        "template",
        "training",
        str(HELM / "training"),
        "--values",
        file,
        "--show-only",
        "templates/localqueue.yaml",
    )
    for served, used in (((), "v1beta2"), (("v1beta1",), "v1beta1"), (("v1beta1", "v1beta2"), "v1beta2")):
        flags = [flag for version in served for flag in ("--api-versions", f"kueue.x-k8s.io/{version}")]
        queue = yaml.safe_load(run_helm("v37", *command, *flags))
        assert queue["apiVersion"] == f"kueue.x-k8s.io/{used}"
        assert queue["spec"] == {"clusterQueue": "gpus"}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ('workspace={"storageClas": "nfs"}', "(?s)workspace.*storageClas"),
        ('workspace={"accessModes": ["ReadWriteMny"]}', "(?s)workspace[./]accessModes[./]0.*ReadWriteMany"),
        ('networkPolicy={"httpsPorts": [0]}', "(?s)networkPolicy[./]httpsPorts[./]0"),
        ('localQueue={"enabled": true}', r"localQueue\.enabled needs localQueue\.clusterQueue"),
        ('quota={"enabled": true}', "quota"),
    ],
)
@pytest.mark.parametrize("release", RELEASES)
def test_a_wrong_value_is_refused_with_its_path(wrong: str, named: str, release: Release) -> None:
    with pytest.raises(HelmError, match=named):
        template("training", "default-values.yaml", wrong, release=release)
