"""deploy on a cluster: real Helm and the real chart against an API server over HTTP, and a real server to verify."""

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import kubernetes
import numpy as np
import pytest
import yaml

from pipelines.cluster.client import Cluster, Polling
from pipelines.deploy.preflight import BASE_NEEDS, needs_of
from pipelines.deploy.release import deploy_on_cluster
from pipelines.deploy.settings import DeployConfig, model_values
from pipelines.run_folder import RunFolder
from server.errors import UserError
from tests.support import helm_api as helm_server
from tests.support.charts import VALUE_SETS, only, rights, template
from tests.support.model_folder import write_into
from tests.support.servers import serving as serving_model
from tests.support.store import Log, Object, Store
from tests.support.tools import helm

pytestmark = pytest.mark.slow
HURRY = Polling(
    interval_seconds=0.05, max_interval_seconds=0.2, read_timeout_seconds=2, timeout_seconds=1, heartbeat_seconds=1
)
NAME = "distrinews-distrinews-serving"
SECOND = 1 / 60
TEXTS = 20
Fate = Callable[["Kubelet", Object], None]


class Kubelet(threading.Thread):
    """The Deployment's controller and the nodes: each new template meets its fate."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True)
        self.store, self.stopped, self.seen = store, False, 0
        self.fates: list[Fate] = []
        """Fates of the next templates; when there is none left, pods get ready."""

    def run(self) -> None:
        while not self.stopped:
            with self.store.changed:
                deployment = self.store.objects["deployments"].get(NAME)
                if deployment and self._is_new(deployment):
                    self.seen += 1
                    (self.fates.pop(0) if self.fates else ready)(self, self.store.objects["deployments"][NAME])
                self.store.changed.wait(0.2)

    def _is_new(self, deployment: Object) -> bool:
        return bool(
            deployment["metadata"].get("generation", 1) != deployment.get("status", {}).get("observedGeneration")
        )

    def roll(self, deployment: Object, *, available: bool) -> None:
        generation = deployment["metadata"].get("generation", 1)
        status: dict[str, Any] = {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1}
        if available:
            progress = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
            status |= {"readyReplicas": 1, "availableReplicas": 1}
            status["conditions"] = [{"type": "Available", "status": "True"}, progress]
        metadata = {**deployment["metadata"], "generation": generation}
        spec = {"replicas": 1, **deployment["spec"]}  # the API server's default
        self.store.put("deployments", {**deployment, "metadata": metadata, "spec": spec, "status": status})

    def pod(self, deployment: Object, status: Object) -> str:
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        name = f"{NAME}-{deployment['metadata'].get('generation', 1)}"
        for old in list(self.store.objects["pods"]):
            self.store.remove("pods", old)
        self.store.put("pods", {"metadata": {"name": name, "labels": labels}, "status": status})
        return name


def ready(kubelet: Kubelet, deployment: Object) -> None:
    kubelet.pod(deployment, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    kubelet.roll(deployment, available=True)


def without_image(kubelet: Kubelet, deployment: Object) -> None:
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "nope:1"'}
    name = kubelet.pod(deployment, {"initContainerStatuses": [{"name": "model", "state": {"waiting": waiting}}]})
    event = {
        "metadata": {"name": "event-1"}, "type": "Warning", "reason": "Failed", "message": "manifest unknown",
        "involvedObject": {"kind": "Pod", "name": name},
    }  # fmt: skip
    for _ in range(2):
        kubelet.store.put("events", event)
    kubelet.roll(deployment, available=False)


def crashing(kubelet: Kubelet, deployment: Object) -> None:
    status = {
        "name": "model", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
    }  # fmt: skip
    name = kubelet.pod(deployment, {"initContainerStatuses": [status]})
    log = Log()
    log.lines, log.ended = [("2026-11-21T12:00:00Z", "error: /model holds another model")], True
    kubelet.store.logs[name] += [log, Log()]
    kubelet.roll(deployment, available=False)


class Stage:
    """A namespace with the claim, two runs on it, and the servers that replace their pods."""

    def __init__(self, store: Store, port: int, urls: dict[str, str]) -> None:
        self.store, self.port, self.urls, self.runs = store, port, urls, Path(urls["runs"])
        self.kubelet = Kubelet(store)
        self.kubelet.start()
        claim = {"metadata": {"name": "distrinews-workspace"}, "spec": {"accessModes": ["ReadWriteMany"]}}
        store.put("persistentvolumeclaims", claim)

    def config(self, run: str, **config: Any) -> DeployConfig:  # noqa: ANN401 - settings
        given = {
            "helm": str(helm("v35")),
            "mount_path": str(self.runs),
            "url": self.urls.get(run, ""),
            "verify_texts": TEXTS,
        }
        return DeployConfig.model_validate({**given, **config})

    def deploy(self, run: str, **config: Any) -> dict[str, Any]:  # noqa: ANN401 - the same
        cluster = Cluster(kubernetes.client.Configuration(host=f"http://127.0.0.1:{self.port}"), "news", HURRY)
        return deploy_on_cluster(RunFolder(self.runs / run), self.config(run, **config), cluster=cluster)

    def failure(self, run: str, **config: Any) -> str:  # noqa: ANN401 - the same
        with pytest.raises(UserError) as caught:
            self.deploy(run, **config)
        return str(caught.value)

    def helm(self, *args: str) -> Any:  # noqa: ANN401 - the output of any command
        output = subprocess.run([helm("v35"), *args, "-n", "news"], capture_output=True, text=True, check=True).stdout
        return json.loads(output) if "json" in args else output

    def history(self) -> list[str]:
        return [one["status"] for one in self.helm("history", "distrinews", "-o", "json")]

    def mounted(self) -> str:
        """The folder of the model that the Deployment has its pods mount."""
        spec = self.store.objects["deployments"][NAME]["spec"]["template"]["spec"]
        return str(
            next(mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "model")["subPath"]
        )

    def served(self) -> str | None:
        file = self.runs / "served.json"
        return str(json.loads(file.read_text(encoding="utf-8"))["run"]) if file.is_file() else None


KEY = "dn_" + "0123456789abcdef" * 3


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Iterator[dict[str, str]]:
    """Two runs up to export, whose models differ but give the same answers, and a server of each, which requires a key."""
    runs = tmp_path_factory.mktemp("runs")
    keys = runs / "keys"
    keys.write_text(f"deploy:{hashlib.sha256(KEY.encode()).hexdigest()}\n", encoding="utf-8")
    for name in ("first", "second"):
        shutil.copytree(finished_run, runs / name, ignore=shutil.ignore_patterns("checkpoints", "logs"))
    model = runs / "second" / "model"
    write_into(model, "model.json", (model / "onnx" / "model.json").read_text(encoding="utf-8") + "\n")
    with ExitStack() as stack:
        flags = ("--api-keys-file", str(keys), "--max-batch-texts", "8", "--engine", "onnx")
        servers = [serving_model(runs / name / "model", *flags) for name in ("first", "second")]
        with ThreadPoolExecutor() as pool:
            clients = [client for _, client in pool.map(stack.enter_context, servers)]
        yield {"runs": str(runs), "first": str(clients[0].base_url), "second": str(clients[1].base_url)}


@pytest.fixture
def stage(urls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("DISTRINEWS_API_KEY", KEY)
    store = Store()
    (Path(urls["runs"]) / "served.json").unlink(missing_ok=True)
    with helm_server.serving(store) as port:
        monkeypatch.setenv("HELM_KUBEAPISERVER", f"http://127.0.0.1:{port}")
        stage = Stage(store, port, urls)
        yield stage
        stage.kubelet.stopped = True
        stage.kubelet.join()


def test_the_first_model_is_installed_verified_and_recorded_as_served(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    done = stage.deploy("first")
    assert done["agreement"] >= 0.9
    assert (done["texts"], done["revision"]) == (TEXTS, 1)
    pod = stage.store.objects["deployments"][NAME]["spec"]["template"]["spec"]
    assert stage.mounted() == "first/model"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "distrinews-workspace"
    assert f"--sha256={done['sha256']}" in pod["initContainers"][0]["args"]
    assert stage.served() == "first"
    output = capsys.readouterr().out
    assert f"deploy | deployment {NAME}: 1 pods, 1 of them new; 1 ready" in output
    assert "helm | STATUS: deployed" in output
    assert KEY not in output + json.dumps(done)


def test_the_next_model_takes_its_place_and_values_set_by_others_stay(stage: Stage) -> None:
    stage.deploy(
        "first", values="podLabels: {team: news}\nautoscaling: {maxReplicas: 7}", server_image="hub:5000/server:1"
    )
    done = stage.deploy("second", values="autoscaling: {minReplicas: 3}")
    assert done["revision"] == 2
    assert stage.history() == ["superseded", "deployed"]
    template = stage.store.objects["deployments"][NAME]["spec"]["template"]
    assert (stage.mounted(), stage.served()) == ("second/model", "second")
    assert template["metadata"]["labels"]["team"] == "news"
    assert template["spec"]["containers"][0]["image"] == "hub:5000/server:1"
    scaling = stage.store.objects["horizontalpodautoscalers"][NAME]["spec"]
    assert (scaling["minReplicas"], scaling["maxReplicas"]) == (3, 7)
    stage.deploy("second", existing_values="drop")
    assert "team" not in stage.store.objects["deployments"][NAME]["spec"]["template"]["metadata"]["labels"]


def test_a_failed_first_install_is_removed_with_a_diagnosis_of_its_pods(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.kubelet.fates = [without_image]
    why = stage.failure("first", timeout_minutes=SECOND)
    assert 'container model waits: ImagePullBackOff: Back-off pulling image "nope:1"' in why
    assert "Failed: manifest unknown" in why
    assert "the release is removed" in why
    assert not stage.store.objects["deployments"]
    assert not stage.store.objects["secrets"]
    assert stage.served() is None
    assert capsys.readouterr().out.count("event | warning: Pod") == 1


def test_an_upgrade_whose_pods_crash_is_rolled_back_with_their_last_lines(stage: Stage) -> None:
    stage.deploy("first")
    stage.kubelet.fates = [crashing]
    why = stage.failure("second", timeout_minutes=SECOND)
    assert "helm upgrade:" in why
    assert "revision 1 is served again" in why
    assert "container model ended: exit code 1" in why
    assert f"{NAME}-2/model | " in why
    assert "error: /model holds another model" in why
    assert (stage.mounted(), stage.served()) == ("first/model", "first")
    assert stage.history() == ["superseded", "failed", "deployed"]


def test_a_model_that_disagrees_with_evaluate_is_rolled_back(stage: Stage) -> None:
    stage.deploy("first")
    file = stage.runs / "second" / "predictions.npy"
    right = file.read_bytes()
    np.save(file, np.roll(np.load(file), 1, axis=1))
    try:
        why = stage.failure("second")
    finally:
        file.write_bytes(right)
    assert f"% of {TEXTS} test texts the label that evaluate gave" in why
    assert (stage.mounted(), stage.served()) == ("first/model", "first")


def test_a_service_that_still_serves_another_model_is_detected(stage: Stage) -> None:
    why = stage.failure("second", url=stage.urls["first"])
    assert "answers with another model: its sha256 is" in why
    assert not stage.store.objects["deployments"]


def test_a_release_that_a_killed_attempt_left_pending_is_recovered_first(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.deploy("first")
    stage.kubelet.fates = [crashing]
    values = stage.runs / "values.yaml"
    values.write_text(
        yaml.safe_dump(model_values(stage.runs / "second" / "model", version="second", config=stage.config("second"))),
        encoding="utf-8",
    )
    upgrade = [
        str(helm("v35")),
        "upgrade",
        "distrinews",
        "helm/serving",
        "-n",
        "news",
        "--values",
        str(values),
        "--wait",
    ]
    with subprocess.Popen(upgrade, stdout=subprocess.DEVNULL) as killed:
        stage.store.wait_for(lambda: not stage.kubelet.fates)
        killed.kill()
    assert stage.history()[-1] == "pending-upgrade"
    assert stage.deploy("second")["revision"] == 4
    assert "revision 2 of distrinews was left pending-upgrade by an attempt that was killed: rolling back to revision 1" in capsys.readouterr().out  # fmt: skip
    assert stage.history()[-1] == "deployed"
    assert stage.mounted() == "second/model"


def test_an_upgrade_by_another_is_waited_for(stage: Stage) -> None:
    stage.kubelet.fates = [crashing]
    values = ["--set-json", 'model={"uri":"s3://a/b"}']
    install = [str(helm("v35")), "install", "distrinews", "helm/serving", "-n", "news", *values, "--wait"]
    # A buffer of our own: pytest's loses what is written while it is read.
    with subprocess.Popen(install, stdout=subprocess.DEVNULL) as other, ThreadPoolExecutor() as pool, redirect_stdout(io.StringIO()) as output:  # fmt: skip
        stage.store.wait_for(lambda: not stage.kubelet.fates)
        running = pool.submit(stage.deploy, "first")
        while "revision 1 of distrinews is pending-install by another: waiting for its end" not in output.getvalue():
            assert not running.done()
            time.sleep(0.05)
        ready(stage.kubelet, stage.store.objects["deployments"][NAME])
        assert running.result(20)["revision"] == 2
        assert other.wait() == 0


def test_a_step_that_is_terminated_rolls_back_before_it_ends(stage: Stage) -> None:
    stage.deploy("first")

    def terminated(kubelet: Kubelet, deployment: Object) -> None:
        crashing(kubelet, deployment)
        os.kill(os.getpid(), signal.SIGTERM)

    stage.kubelet.fates = [terminated]
    with pytest.raises(SystemExit) as ended:
        stage.deploy("second")
    assert ended.value.code == 128 + signal.SIGTERM
    assert stage.mounted() == "first/model"
    assert stage.history()[-1] == "deployed"
    assert stage.served() == "first"


def test_all_that_is_missing_is_listed_at_once_with_the_role_to_apply(stage: Stage) -> None:
    stage.store.remove("persistentvolumeclaims", "distrinews-workspace")
    stage.store.denied = {("update", "secrets"), ("create", "deployments")}
    why = stage.failure("first", helm="no-helm-here")
    assert why.startswith("namespace news lacks what release distrinews needs:")
    for line in ("program no-helm-here", "permission to update secrets", "permission to create deployments", "claim distrinews-workspace"):  # fmt: skip
        assert f"  - {line}" in why or f"  - the {line}" in why
    role, binding = yaml.safe_load_all(why.split("kubectl apply -f:")[1])
    assert {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "watch", "create", "patch", "delete"]} in role["rules"]  # fmt: skip
    assert binding["subjects"][0]["name"] == "pipeline-runner"


def test_a_misspelt_value_is_refused_before_anything_changes(stage: Stage) -> None:
    why = stage.failure("first", values="replica: 3")
    assert "a release that Helm can make: " in why
    assert "replica" in why
    assert not stage.store.objects["secrets"]


def test_the_key_comes_from_the_secret_of_the_charts_own_test(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTRINEWS_API_KEY")
    values = "apiKeys: {existingSecret: keys}"
    assert "there is none to verify it with" in stage.failure("first", values=values)
    data = {"api-key": base64.b64encode(f"{KEY}\n".encode()).decode()}
    stage.store.put("secrets", {"metadata": {"name": "whole-key"}, "data": data})
    assert stage.deploy("first", values=f"{values}\ntests: {{apiKeySecret: whole-key}}")["texts"] == TEXTS


def test_a_wrong_key_is_reported_without_showing_it(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("dn_wrong", encoding="utf-8")
    why = stage.failure("first", api_key_file=str(tmp_path / "key"))
    assert "wants an API key and refuses this one" in why
    assert "dn_wrong" not in why


def test_the_training_chart_grants_all_permissions_that_deploy_needs() -> None:
    objects = template("training", "everything-values.yaml")
    granted = rights(only(objects, "Role", "distrinews-launcher-deploy"))
    for what, verbs in rights(only(objects, "Role", "distrinews-launcher")).items():
        granted[what] = granted.get(what, set()) | verbs
    rendered = [item for chart, values in VALUE_SETS if chart == "serving" for item in template(chart, values)]
    for need in (*BASE_NEEDS, *needs_of(rendered), *needs_of([])):
        assert set(need.verbs) <= granted[need.group, need.resource], need


def test_an_image_needs_a_version_and_a_run_its_export_and_its_claim(stage: Stage, tmp_path: Path) -> None:
    assert "names no version" in stage.failure("first", server_image="hub:5000/server")
    assert "set mount_path" in stage.failure("first", mount_path=str(tmp_path))
    (stage.runs / "third").mkdir(exist_ok=True)
    assert "there is nothing to serve before the export step" in stage.failure("third", url="http://nowhere.example")
