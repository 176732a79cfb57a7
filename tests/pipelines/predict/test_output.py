"""The output of predict: rows of the input with their answers, each once, also where it is resumed."""

from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from pipelines.predict.output import provenance_file
from server.model_folder import write_manifest
from tests.support.answering import Reply, answering, sports
from tests.support.data import write, write_csv, write_json_lines
from tests.support.model_folder import write_model_folder, write_onnx
from tests.support.predicting import ROWS, TEXT, records, refused, run

pytestmark = pytest.mark.slow  # the module takes seconds


def test_json_lines_become_csv_unless_a_later_row_has_more_columns(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_json_lines(tmp_path / "in.jsonl", [{"n": 1, "text": "goal"}, {"text": "bank", "n": None}])
    run(folder, "--input", source, "--output", tmp_path / "out.csv", *TEXT)
    assert [(row["n"], row["text"]) for row in records(tmp_path / "out.csv")] == [("1", "goal"), ("", "bank")]
    write_json_lines(source, [{"text": "goal"}, {"text": "bank", "n": 1}])
    printed = refused(capsys, folder, "--input", source, "--output", tmp_path / "more.csv", *TEXT)
    assert "line 2 of the input has the column 'n'" in printed


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_output_cut_anywhere_is_resumed_to_the_same_bytes(
    folder: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, source = tmp_path / f"out.{kind}", write_csv(tmp_path / "in.csv", ROWS[:40], ("title", "body", "label"))
    command = ("--input", source, "--text-column", "body", "--output", output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # the process seems to end before the output is finished
        run(folder, *command)
    whole, note = output.read_bytes(), provenance_file(output).read_bytes()
    rows = whole.index(b"goal 35,") if kind == "csv" else whole.index(b'"goal 35"')
    for cut in (0, 5, len(whole) // 3, *range(rows, rows + 30, 4), len(whole) - 1, len(whole)):
        output.write_bytes(whole[:cut])
        provenance_file(output).write_bytes(note)
        capsys.readouterr()
        run(folder, *command, "--resume")
        assert output.read_bytes() == whole, cut
    assert "predict: 0 rows after the 40 that were there" in capsys.readouterr().out


def test_what_was_written_before_a_failure_is_not_asked_for_again(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[str] = []

    def answer(texts: list[str], _: BaseHTTPRequestHandler) -> Reply:
        sent.extend(texts)
        return sports(texts) if failed or len(sent) < 350 else (404, {"detail": "gone"}, {})

    output, failed = tmp_path / "out.csv", False
    with answering(answer) as url:
        command = ("--input", table, "--text-column", "title", "--output", output, "--resume")
        assert "gone; the rows so far are in" in refused(capsys, url, *command)
        assert 0 < len(records(output)) < 350
        failed = True
        run(url, *command)
        assert [row["title"] for row in records(output)] == [row[0] for row in ROWS]
        assert len(sent) <= len(ROWS) + 2 * 4 * 4, "at most what was in flight is sent again"
        count = len(sent)
        run(url, *command)
        assert len(sent) == count, "a finished output sends nothing"


def test_resume_refuses_another_input_model_or_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_csv(tmp_path / "in.csv", [("goal", number) for number in range(4)], ("text", "title"))
    output = tmp_path / "out.csv"
    command = ("--input", source, "--output", output, "--resume", *TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        run(folder, *command)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:4]))
    assert "begun with text columns ['text']" in refused(capsys, folder, *command[:-1], "title")
    assert "begun with --bad-rows stop" in refused(capsys, folder, *command, "--bad-rows", "skip")
    other = write_model_folder(tmp_path / "other")
    write_onnx(other / "onnx" / "model_int8.onnx", seed=7)
    write_manifest(other)
    assert "was begun with sha256" in refused(capsys, other, *command)
    write(source, "text,title\ngoal,0\nbanks,1\n")
    assert f"row 2 of {output} is not line 3 of the input, which has changed" in refused(capsys, folder, *command)
    write(source, "text,title\ngoal,0\n")
    assert "more rows than the input" in refused(capsys, folder, *command)
    write(source, "text,name\ngoal,0\n")
    assert "other columns" in refused(capsys, folder, *command)
    assert len(output.read_text().splitlines()) == 4, "what was there is still there"


def test_an_output_is_not_overwritten_and_a_finished_one_gets_no_more_rows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "in.txt", "goal\n"), tmp_path / "out.jsonl"
    command = ("--input", source, "--output", output)
    run(folder, *command)
    finished = output.read_bytes()
    assert "exists; resume it with --resume" in refused(capsys, folder, *command)
    write(source, "goal\nbank\n")
    assert "is finished, but the input has a line 2" in refused(capsys, folder, *command, "--resume")
    own = ("--input", source, "--output", source, "--output-format", "jsonl")
    for more in ((), ("--resume",)):
        assert f"--output {source}: is the input, too; write to another" in refused(capsys, folder, *own, *more)
    assert (output.read_bytes(), source.read_text()) == (finished, "goal\nbank\n")
