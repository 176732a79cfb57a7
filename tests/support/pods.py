"""Runs containers of pods with podman as a kubelet would: on this machine's network, without a cluster."""

import math
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

# For machines where podman needs more, such as --runtime.
FLAGS = shlex.split(os.environ.get("PODMAN_FLAGS", ""))
_KNOWN_POD = {
    "automountServiceAccountToken", "containers", "enableServiceLinks", "restartPolicy", "securityContext", "serviceAccountName",
    "terminationGracePeriodSeconds", "topologySpreadConstraints", "volumes",
}  # fmt: skip
_KNOWN_CONTAINER = {"args", "command", "env", "envFrom", "image", "imagePullPolicy", "name", "resources", "securityContext", "volumeMounts"}  # fmt: skip


class Pod:
    """One container from a pod template; started again, it is a new container with the volumes of the old one."""

    def __init__(
        self, name: str, template: dict[str, Any], folder: Path, *, claim: Path, ip: str, environment: dict[str, str]
    ) -> None:
        self.name, self.folder, self.claim, self.ip = name, folder, claim, ip
        self.pod, (self.container,) = template["spec"], template["spec"]["containers"]
        assert set(self.pod) <= _KNOWN_POD, "a field that this stand-in would leave out"
        assert set(self.container) <= _KNOWN_CONTAINER, "a field that this stand-in would leave out"
        assert all(source["secretRef"]["optional"] for source in self.container.get("envFrom", [])), (
            "there is none here"
        )
        self.environment = {**dict(map(self._variable, self.container.get("env", []))), **environment}
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def start(self) -> None:
        self.starts += 1
        self.remove()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=subprocess.STDOUT)

    def wait(self, *, seconds: float) -> int:
        assert self._process
        return self._process.wait(timeout=seconds)

    def status(self) -> int | None:
        """Returns the exit status of its container, or None while it runs."""
        assert self._process
        return self._process.poll()

    def kill(self) -> None:
        """Kills all processes of the container, as the kernel does when memory is short."""
        subprocess.run(["podman", "kill", "--signal", "KILL", self.name], check=True, capture_output=True)

    def remove(self) -> None:
        subprocess.run(
            ["podman", "rm", "--force", "--time", "0", "--ignore", self.name], check=True, capture_output=True
        )

    def _command(self) -> list[str]:
        program, *first = self.container["command"]
        words = [self._expand(word) for word in (*first, *self.container["args"])]
        variables = [f"--env={name}={value}" for name, value in self.environment.items()]
        return [
            "podman", "run", "--rm", "--name", self.name, "--hostname", self.name, "--network", "host", "--pull", "never",
            "--no-hosts", f"--volume={self.folder.parent / 'hosts'}:/etc/hosts:ro", *FLAGS, *self._security(), *self._limits(), *self._volumes(),
            *variables, "--entrypoint", program, self.container["image"], *words,
        ]  # fmt: skip

    def _variable(self, entry: dict[str, Any]) -> tuple[str, str]:
        if "value" in entry:
            return entry["name"], entry["value"]
        source = entry["valueFrom"]
        if source == {"fieldRef": {"fieldPath": "status.podIP"}}:
            return entry["name"], self.ip
        assert source == {"resourceFieldRef": {"resource": "limits.cpu"}}
        return entry["name"], str(math.ceil(float(self.container["resources"]["limits"]["cpu"])))

    def _expand(self, word: str) -> str:
        for name, value in self.environment.items():
            word = word.replace(f"$({name})", value)
        return word

    def _security(self) -> list[str]:
        pod, own = self.pod["securityContext"], self.container["securityContext"]
        assert pod["runAsNonRoot"]
        assert own["allowPrivilegeEscalation"] is False
        return [
            f"--user={pod['runAsUser']}:{pod['runAsGroup']}",
            "--security-opt=no-new-privileges",  # RuntimeDefault means podman's own seccomp profile
            f"--read-only={str(own['readOnlyRootFilesystem']).lower()}", "--read-only-tmpfs=false",
            *[f"--cap-drop={name}" for name in own["capabilities"]["drop"]],
        ]  # fmt: skip

    def _limits(self) -> list[str]:
        limits = self.container["resources"]["limits"]
        return [
            f"--memory={limits['memory'].removesuffix('i').lower()}",
            f"--cpus={min(float(limits['cpu']), os.cpu_count() or 1)}",
        ]

    def _volumes(self) -> list[str]:
        volumes, made = {volume["name"]: volume for volume in self.pod["volumes"]}, []
        for mount in self.container["volumeMounts"]:
            volume, path, mode = volumes[mount["name"]], mount["mountPath"], "ro" if mount.get("readOnly") else "rw"
            if "persistentVolumeClaim" in volume:
                made.append(f"--volume={self.claim}:{path}:{mode}")
            elif volume["emptyDir"].get("medium") == "Memory":
                assert path == "/dev/shm"  # noqa: S108 - a path in the container
                made.append(f"--shm-size={volume['emptyDir']['sizeLimit'].removesuffix('i').lower()}")
            else:
                made.append(f"--volume={_group_writable(self.folder / mount['name'])}:{path}")
        return made


def run_job(job: dict[str, Any], folder: Path, *, claim: Path) -> str:
    """Runs a Job's pod to its end; returns its log."""
    pod = Pod(job["metadata"]["name"], job["spec"]["template"], folder, claim=claim, ip="127.0.0.1", environment={})
    (folder.parent / "hosts").write_text(f"127.0.0.1 localhost {pod.name}\n", encoding="utf-8")
    pod.start()
    try:
        assert pod.wait(seconds=200) == 0, pod.log
    finally:
        pod.remove()
    return pod.log


def _group_writable(folder: Path) -> Path:
    """Makes a folder that group 0 owns and may write, as fsGroup: 0 makes volumes."""
    folder.mkdir(exist_ok=True)
    os.chown(folder, 0, 0)
    folder.chmod(0o2775)
    return folder


def new_claim(folder: Path) -> Path:
    return _group_writable(folder)
