"""The manifest of a model folder: which files a server may read, and what is in them."""

import hashlib
from pathlib import Path

from server.files import write_json

MANIFEST = "manifest.json"
_BESIDE = ("config.json", "model.safetensors")  # what PyTorch loads; the rest of the model folder no server reads


def write_manifest(model_folder: Path, *, onnx: Path | None = None) -> None:
    """Write onnx/manifest.json: bytes and sha256 of each file that a server reads, by its name inside the model folder.

    `onnx` is where that folder stands while it is written; last, for whatever changes afterwards is refused.
    """
    onnx = onnx or model_folder / "onnx"
    files = {f"onnx/{file.name}": file for file in sorted(onnx.iterdir()) if file.name != MANIFEST}
    files |= {name: model_folder / name for name in _BESIDE if (model_folder / name).is_file()}
    write_json(onnx / MANIFEST, {"files": {name: _entry(file) for name, file in files.items()}})


def _entry(file: Path) -> dict[str, int | str]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
