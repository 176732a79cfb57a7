"""A model is fetched whole and as it was exported, from a folder, a web server, an object store or the hub."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from server.inference import backends as engine
from server.model_folder import read_model_folder, write_manifest
from server.settings import Settings
from tests.support.fetching import fetch_model
from tests.support.model_folder import write_model_folder

pytestmark = pytest.mark.slow  # the module takes seconds


@dataclass
class Kept:
    """Records the requests that a server of files got."""

    url: str
    requests: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def files_over_http(folder: Path) -> Iterator[Kept]:
    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            kept.requests.append((self.path, self.headers.get("Authorization", "")))
            super().do_GET()

        def end_headers(self) -> None:
            self.send_header("ETag", '"1"')  # without one, none is an object store
            super().end_headers()

        def log_message(self, *_: object) -> None:
            """Logs nothing: the tests look at `requests`."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        kept = Kept(f"http://127.0.0.1:{server.server_port}")
        Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True).start()
        yield kept
        server.shutdown()


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    write_model_folder(tmp_path / "bucket" / "models" / "news")
    return tmp_path / "bucket"


@pytest.fixture
def model(bucket: Path) -> Path:
    return bucket / "models" / "news"


def digest(model: Path) -> str:
    return hashlib.sha256((model / "onnx" / "manifest.json").read_bytes()).hexdigest()


def refusal(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        fetch_model(args)
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, "an error is one line"
    return captured.err


def test_a_fetched_folder_is_served(model: Path, tmp_path: Path) -> None:
    fetch_model([model.as_uri(), "--to", str(tmp_path / "to"), "--sha256", digest(model)])
    assert read_model_folder(tmp_path / "to", ["int8"]).sha256 == digest(model)
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["onnx"], "nothing else is left there"


def test_only_the_variant_that_is_served_is_fetched(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for chosen, file in (("onnx", "model_int8.onnx"), ("onnx-fp32", "model.onnx")):
        monkeypatch.setenv("DISTRINEWS_ENGINE", chosen)
        fetch_model([model.as_uri(), "--to", str(tmp_path / chosen)])
        there = {path.name for path in (tmp_path / chosen / "onnx").iterdir()}
        assert there == {"manifest.json", "model.json", "tokenizer.json", file}


def test_the_trained_model_is_fetched_for_pytorch_and_removed_for_other_engines(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes(b"of " + name.encode())
    write_manifest(model)
    files = {"onnx/manifest.json", "onnx/model.json", "onnx/tokenizer.json"}
    monkeypatch.setattr(engine, "gpu", lambda: engine.Gpu(usable=True))
    monkeypatch.setattr(engine, "openvino_installed", lambda: False)
    beside = {"config.json", "model.safetensors"}
    for chosen, more in (("torch", beside), ("onnx", {"onnx/model_int8.onnx"}), ("auto", beside)):
        monkeypatch.setenv("DISTRINEWS_ENGINE", chosen)
        fetch_model([model.as_uri(), "--to", str(tmp_path / "to")])
        there = {str(file.relative_to(tmp_path / "to")) for file in (tmp_path / "to").rglob("*") if file.is_file()}
        assert there == files | more
        read = read_model_folder(tmp_path / "to", engine.candidates(Settings().engine))
        assert read.variant == ("int8" if chosen == "onnx" else "torch")


def test_weights_that_are_not_the_manifest_s_or_not_listed_are_refused_by_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTRINEWS_ENGINE", "torch")
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"others")
    args = [model.as_uri(), "--to", str(tmp_path / "to")]
    assert "model.safetensors is not in onnx/manifest.json" in refusal(args, capsys)
    write_manifest(model)
    (model / "model.safetensors").write_bytes(b"change")
    assert "model.safetensors is not the file that was exported" in refusal(args, capsys)
    (model / "model.safetensors").unlink()
    assert f"cannot fetch {model.as_uri()}/model.safetensors" in refusal(args, capsys)
    assert list((tmp_path / "to").iterdir()) == []


def test_a_web_server_is_enough(model: Path, tmp_path: Path) -> None:
    with files_over_http(model) as kept:
        fetch_model([kept.url, "--to", str(tmp_path / "to")])
    assert digest(tmp_path / "to") == digest(model)


def test_an_object_store_is_asked_with_the_key_of_its_variables(
    bucket: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files_over_http(bucket.parent) as kept:
        monkeypatch.setenv("AWS_ENDPOINT_URL", kept.url)
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unguessable")
        monkeypatch.setenv("AWS_REGION", "eu-north-1")
        fetch_model(["s3://bucket/models/news", "--to", str(tmp_path / "to")])
    assert digest(tmp_path / "to") == digest(model)
    for path, authorization in kept.requests:
        assert path.startswith("/bucket/models/news/onnx/")
        assert authorization.startswith("AWS4-HMAC-SHA256 Credential=someone/")
        assert "/eu-north-1/s3/" in authorization


def test_google_s_store_is_asked_with_the_key_of_its_variable(
    bucket: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files_over_http(bucket.parent) as kept:
        key = {
            "gcs_base_url": kept.url,
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))
        fetch_model(["gs://bucket/models/news", "--to", str(tmp_path / "to")])
    assert digest(tmp_path / "to") == digest(model)


def test_the_hub_is_asked_for_the_revision_with_the_token(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "hub" / "someone" / "news" / "resolve" / "v1")
    with files_over_http(tmp_path / "hub") as kept:
        monkeypatch.setenv("HF_ENDPOINT", kept.url)
        monkeypatch.setenv("HF_TOKEN", "hf_unguessable")
        fetch_model(["hf://someone/news@v1", "--to", str(tmp_path / "to")])
    assert digest(tmp_path / "to") == digest(model)
    assert {authorization for _, authorization in kept.requests} == {"Bearer hf_unguessable"}


def test_a_model_with_another_digest_is_refused_and_the_one_there_stays(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch_model([model.as_uri(), "--to", str(tmp_path / "to")])
    before = sorted((tmp_path / "to").rglob("*"))
    capsys.readouterr()
    output = refusal([model.as_uri(), "--to", str(tmp_path / "to"), "--sha256", "0" * 64], capsys)
    assert "holds another model" in output
    assert digest(model) in output
    assert sorted((tmp_path / "to").rglob("*")) == before


def test_a_file_that_differs_from_the_manifest_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (model / "onnx" / "model_int8.onnx").open("r+b") as file:
        file.write(b"x")
    assert "is not the file that was exported" in refusal([model.as_uri(), "--to", str(tmp_path / "to")], capsys)
    assert list((tmp_path / "to").iterdir()) == []


def test_a_manifest_cannot_name_a_file_elsewhere(model: Path, tmp_path: Path) -> None:
    (model / "evil").write_bytes(b"evil")
    manifest = model / "onnx" / "manifest.json"
    listed = json.loads(manifest.read_text(encoding="utf-8"))
    entry = {"bytes": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}
    listed["files"] |= {"onnx/../evil": entry, "onnx/../../evil": entry, "evil": entry, "/evil": entry}
    manifest.write_text(json.dumps(listed), encoding="utf-8")
    fetch_model([model.as_uri(), "--to", str(tmp_path / "to")])
    assert not list((tmp_path / "to").rglob("evil"))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("ftp://host/model", "should begin with s3://, gs://, hf://, https:// or file:///"),
        ("hf://news", "should be hf://OWNER/NAME"),
        ("file:///nowhere/to/be/found", "Unable to canonicalize filesystem root: /nowhere"),
        ("http://127.0.0.1:9", "cannot fetch http://127.0.0.1:9/onnx/manifest.json"),
    ],
)
def test_a_uri_that_cannot_be_fetched_is_named(
    uri: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refusal([uri, "--to", str(tmp_path / "to")], capsys)


def test_a_folder_can_be_checked_where_it_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_model([model.as_uri(), "--sha256", digest(model)])
    capsys.readouterr()
    assert "holds another model" in refusal([model.as_uri(), "--sha256", "0" * 64], capsys)
    shutil.rmtree(model)
    assert "manifest.json is missing" in refusal([model.as_uri(), "--sha256", "0" * 64], capsys)
