"""The server reads settings from variables and flags, and refuses a wrong one with one line."""

from pathlib import Path

import pytest

from server.inference.hardware import available_cpus
from server.main import Serve
from server.settings import Settings
from tests.support.servers import read_settings


def refusal(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        read_settings(args)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, "an error is one line"
    return captured.err


def test_a_variable_applies_where_no_flag_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRINEWS_PORT", "9000")
    monkeypatch.setenv("DISTRINEWS_MAX_BATCH_TEXTS", "7")
    settings = read_settings(["folder", "--port", "9001"])
    assert (settings.port, settings.max_batch_texts) == (9001, 7)
    assert settings.model_folder == Path("folder")


def test_the_port_of_the_host_counts_where_ours_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "7860")
    assert read_settings(["folder"]).port == 7860
    monkeypatch.setenv("DISTRINEWS_PORT", "9000")
    assert read_settings(["folder"]).port == 9000
    assert read_settings(["folder", "--port", "9001"]).port == 9001


def test_a_wrong_port_of_the_host_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PORT", "http")
    assert "PORT 'http': input should be a valid integer" in refusal(["folder"], capsys)


def test_a_service_named_as_the_prefix_is_not_read_as_a_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTRINEWS_PORT", "tcp://10.0.0.1:8080")
    output = refusal(["folder"], capsys)
    assert "DISTRINEWS_PORT 'tcp://10.0.0.1:8080'" in output
    assert "the Service distrinews" in output
    assert "enableServiceLinks: false" in output


def test_other_variables_that_kubernetes_makes_of_services_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8080_TCP", "PORT_8080_TCP_ADDR"):
        monkeypatch.setenv(f"DISTRINEWS_{name}", "10.0.0.1")
        monkeypatch.setenv(f"DISTRINEWS_SERVING_{name}", "10.0.0.1")
    monkeypatch.setenv("DISTRINEWS_SERVING_PORT", "tcp://10.0.0.1:8080")
    monkeypatch.setenv("DISTRINEWS_PORT", "9000")
    assert Settings().port == 9000


def test_a_port_of_no_setting_that_is_no_service_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTRINEWS_HTTP_PORT", "8080")
    assert "DISTRINEWS_HTTP_PORT names no setting" in refusal(["folder"], capsys)


def test_a_variable_that_names_no_setting_is_refused_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTRINEWS_MAX_BATCH_TEXT", "7")
    output = refusal(["folder"], capsys)
    assert "DISTRINEWS_MAX_BATCH_TEXT names no setting" in output
    assert "nearest is DISTRINEWS_MAX_BATCH_TEXTS" in output


def test_the_model_folder_is_no_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DISTRINEWS_MODEL_FOLDER", "folder")
    assert "DISTRINEWS_MODEL_FOLDER" in refusal(["folder"], capsys)


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRINEWS_TERMINAL", "plain")
    monkeypatch.setenv("DISTRICT", "9")
    assert Settings().port == 8080


def test_a_log_of_json_has_a_line_for_each_request_unless_the_level_excludes_it() -> None:
    assert Settings().log_level == "warning"
    assert Settings(log_format="json").log_level == "info"
    assert Settings(log_format="json", log_level="error").log_level == "error"


def test_the_port_of_the_metrics_follows_the_port() -> None:
    assert [Settings(port=port).metrics_port for port in (8080, 0, 65_535)] == [9080, 0, 64_535]
    assert read_settings(["folder", "--metrics-port", "off"]).metrics_port == "off"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], "MODEL-FOLDER"),
        (["folder", "--prot", "1"], "did you mean --port?"),
        (["folder", "--port"], "--port"),
        (["folder", "--port", "65536"], "less than or equal to 65535"),
        (["folder", "--engine", "int4"], "'auto', 'openvino', 'onnx', 'onnx-fp32' or 'torch'"),
        (["folder", "--metrics-port", "on"], "--metrics-port 'on'"),
        (["folder", "--workers", "0"], "--workers '0'"),
        (["folder", "--max-text-characters", "many"], "--max-text-characters"),
        (
            ["folder", "--port", "9080", "--metrics-port", "9080"],
            "--port and --metrics-port are both 9080: choose two, or --metrics-port off",
        ),
    ],
)
def test_a_wrong_flag_is_named_with_a_fix(args: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in refusal(args, capsys)


@pytest.mark.parametrize(
    ("args", "batch", "queued"),
    [
        (["--max-batch-texts", "9", "--max-queued-texts", "8"], 9, 8),
        (["--max-batch-texts", "1024"], 1024, 512),
        (["--max-queued-texts", "63"], 64, 63),
    ],
)
def test_a_batch_limit_above_the_queue_limit_is_refused_with_both_values_and_a_fix(
    args: list[str], batch: int, queued: int, capsys: pytest.CaptureFixture[str]
) -> None:
    output = refusal(["folder", *args], capsys)
    assert f"--max-batch-texts is {batch}, more than --max-queued-texts, {queued}" in output
    assert f"set the first to {queued} at most or the second to {batch} at least" in output


def test_a_request_may_have_as_many_texts_as_may_wait() -> None:
    assert Settings(max_batch_texts=1024, max_queued_texts=1024).max_batch_texts == 1024


def test_there_are_no_more_connections_than_open_files_have_room_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("server.settings._open_files", lambda: 1_000_000)
    assert Settings().max_connections == 2000
    monkeypatch.setattr("server.settings._open_files", lambda: 1024)
    assert Settings().max_connections == 924
    assert Settings(max_connections=924).max_connections == 924
    assert "open files for 924 connections: choose fewer, or raise ulimit -n" in refusal(
        ["folder", "--max-connections", "925"], capsys
    )


def test_help_gives_the_meaning_of_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read_settings(["--help"])
    assert not stop.value.code
    output = " ".join(capsys.readouterr().out.split())
    for name, field in Serve.model_fields.items():
        assert field.description, f"{name} has no meaning under it"
        assert " ".join(field.description.split()) in output


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_workers_are_the_cpus_that_this_process_may_use() -> None:
    assert Settings().workers == available_cpus() >= 1
