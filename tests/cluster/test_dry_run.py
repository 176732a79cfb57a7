"""A real API server accepts our objects in dry runs; the tests are skipped where there is none."""

import subprocess

import pytest

from tests.conftest import distrinews
from tests.support.charts import CHARTS, HELM
from tests.support.tools import helm, kubectl

pytestmark = pytest.mark.cluster
NAMESPACE = "default"


@pytest.fixture(scope="module")
def _cluster() -> None:
    """Skips where kubeconfig's current context leads to no API server."""
    done = run_kubectl("version", "--request-timeout=5s")
    if done.returncode:
        pytest.skip(f"no cluster: {' '.join(done.stderr.split())[:200]}")


def run_kubectl(*args: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run([kubectl("v35"), *args], input=text, capture_output=True, text=True, check=False, timeout=60)


def dry_run(objects: str) -> str:
    done = run_kubectl("apply", "--dry-run=server", "--namespace", NAMESPACE, "--filename", "-", text=objects)
    if "no matches for kind" in done.stderr:
        pytest.skip(f"the cluster lacks a kind: {' '.join(done.stderr.split())[:200]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("_cluster")
def test_the_api_server_accepts_a_rendered_training_job() -> None:
    rendered = distrinews("job", "render", "--run", "dry-run", "--nodes", "2")
    assert rendered.returncode == 0, rendered.stderr
    assert "(server dry run)" in dry_run(rendered.stdout)


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("chart", CHARTS)
def test_the_api_server_accepts_the_objects_of_a_chart(chart: str) -> None:
    values = HELM / chart / "ci" / "default-values.yaml"
    command = [str(helm("v35")), "template", "dry-run", str(HELM / chart), "--values", str(values), "--no-hooks"]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "(server dry run)" in dry_run(rendered)
