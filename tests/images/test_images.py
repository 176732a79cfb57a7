"""The contents of the images; tests/images/containers.py runs them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = {"trainer": ["trainer", "mlflow"], "server": ["server", "oidc", "telemetry"], "pipelines": ["pipelines"]}
_RENEW = "make lock renews the files"


def pins(name: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([^\s\\]+)", (ROOT / "images" / name).read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_the_versions_that_the_tests_run_with(image: str) -> None:
    tested, installed = pins("constraints.txt"), pins(f"{image}.txt")
    assert {name: version for name, version in installed.items() if tested.get(name, version) != version} == {}, _RENEW
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(line for extra in IMAGES[image] for line in extras[extra])]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", line)[0]).lower() for line in requirements}
    assert names - installed.keys() - ({"torch"} if image == "trainer" else set()) == set(), _RENEW


def test_pytorch_has_one_version_on_every_kind_of_processor() -> None:
    assert pins("torch-cpu.txt") == {"torch": pins("constraints.txt")["torch"]}, _RENEW
    assert pins("torch-cuda.txt")["torch"] == pins("constraints.txt")["torch"], _RENEW
    assert not {name for name in pins("trainer.txt") if name.startswith(("torch", "nvidia", "cuda", "triton"))}


def test_the_server_image_has_no_pytorch_and_no_cluster_client() -> None:
    assert not {"torch", "transformers", "kfp", "kubernetes"} & pins("server.txt").keys()


@pytest.mark.parametrize("name", ["trainer", "server", "pipelines", "build", "tools", "torch-cuda"])
def test_every_locked_package_has_a_hash(name: str) -> None:
    text = (ROOT / "images" / f"{name}.txt").read_text(encoding="utf-8")
    packages = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(packages) == len(pins(f"{name}.txt")) > 0
    assert all("--hash=sha256:" in package for package in packages)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "images" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_copies_packages_before_code_and_runs_no_command(image: str) -> None:
    stages = re.split(r"^FROM ", (ROOT / "images" / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    (stage,) = (stage for stage in stages if stage.startswith(f"runtime AS {image}\n"))
    assert not re.search(r"^(RUN|USER) ", stage, re.MULTILINE)
    assert stage.index(f"--from={image}-packages") < stage.index("--from=code")


def test_every_image_runs_on_the_one_base_as_a_number_of_group_0() -> None:
    text = (ROOT / "images" / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}", "builder", "runtime"}
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:0"]


@pytest.mark.parametrize("script", ["images/build", "images/lock", ".ci/images", ".ci/run"])
def test_a_script_is_valid(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)
