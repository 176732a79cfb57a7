"""The pipeline as a user runs it: one command, one folder a run, and errors last."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.deploy.local import serving
from pipelines.kubeflow.local import Ending
from pipelines.run import Run, run_here
from pipelines.run_folder import STEPS, RunFolder, RunSettings, start_run
from server.cli import build
from server.errors import UserError
from server.http.client import Client, Prediction
from tests.conftest import DISTRINEWS, distrinews
from tests.support.data import write
from trainer.checkpoint.lock import OF_RUN, _started

pytestmark = pytest.mark.slow  # the module takes seconds


def facts(run: Path) -> dict[str, Any]:
    return RunFolder(run).facts


def test_a_run_ends_with_accuracy_report_and_a_request_for_the_server(finished_run: Path) -> None:
    last = (finished_run / "output.txt").read_text(encoding="utf-8").split("\ndone in ")[1]
    accuracy = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))["accuracy"]
    assert f"accuracy  {accuracy:.4f} on 144 test rows" in last
    assert f"report    {finished_run / 'report.html'}" in last
    assert f"distrinews serve {finished_run / 'model'}" in last
    assert "curl -s http://127.0.0.1:8080/predict" in last


def test_the_terminal_shows_the_output_of_the_steps_and_none_of_kubeflow(finished_run: Path) -> None:
    output = (finished_run / "output.txt").read_text(encoding="utf-8")
    assert [step for step in STEPS if f"\n{step}: " in output] == list(STEPS)
    assert "KFP" not in output
    assert "executor" not in output
    assert "KFP Executor" in (finished_run / "pipeline.log").read_text(encoding="utf-8")


def test_the_run_folder_holds_all_results_and_run_json_records_them(finished_run: Path) -> None:
    assert {path.name for path in finished_run.iterdir()} >= {
        "dataset", "checkpoints", "logs", "model", "metrics.json", "report.html", "run.json", "pipeline.log",
    }  # fmt: skip
    recorded = facts(finished_run)
    assert [recorded["steps"][step]["status"] for step in STEPS] == ["succeeded"] * len(STEPS)
    assert all(recorded["steps"][step]["seconds"] > 0 for step in STEPS)
    assert recorded["settings"]["epochs"] == 2
    assert recorded["versions"]["torch"]
    assert recorded["steps"]["preprocess"]["outcome"]["fingerprint"]
    assert recorded["steps"]["train"]["outcome"]["ranks"] == min(2, len(os.sched_getaffinity(0)))
    assert "git_commit" in recorded


def test_the_model_served_at_the_end_is_noted_for_the_next_gate(finished_run: Path) -> None:
    served = json.loads((finished_run.parent / "served.json").read_text(encoding="utf-8"))
    assert (served["run"], served["model"]) == ("first", str(finished_run / "model"))


def test_the_server_of_deploy_has_no_settings_of_the_shell_but_its_engine(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "DISTRINEWS_API_KEYS": f"me:{'0' * 64}",
        "DISTRINEWS_RATE_LIMIT": "1/hour",
        "DISTRINEWS_METRICS_PORT": "1",
        "DISTRINEWS_ANYTHING": "of a later version",
        "distrinews_host": "host.invalid",
        "http_proxy": "http://127.0.0.1:9",
        "DISTRINEWS_ENGINE": "onnx-fp32",
    }.items():
        monkeypatch.setenv(name, value)
    with serving(finished_run / "model") as address:
        health = httpx.get(f"{address}/health", trust_env=False).json()
        assert (health["status"], health["variant"]) == ("healthy", "fp32")
        text = "The striker scored twice and the coach praised the defence after the final."
        with Client(address, proxies=False) as client:
            answer = client.classify([text])[0]
    assert isinstance(answer, Prediction)
    assert answer.label == "Sports"
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-4)


def on_a_terminal(*args: str) -> subprocess.CompletedProcess[str]:
    """The command as a user calls it who sits before a terminal, which is all its outputs."""
    main, terminal = pty.openpty()
    with subprocess.Popen([DISTRINEWS, *args], stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        output = b""
        try:
            while chunk := os.read(main, 65536):
                output += chunk
        except OSError:  # Linux ends a terminal that nobody holds with an error
            pass
    os.close(main)
    return subprocess.CompletedProcess(args, process.returncode, output.decode())


@pytest.fixture(scope="module")
def refused_run(finished_run: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run in the same workspace whose model is not good enough."""
    args = "run --data sample:1500 --epochs 1 --batch-size 8 --ranks 1 --name refused --min-accuracy 1 --max-accuracy-drop 0.5"
    done = on_a_terminal(*args.split(), "--runs-dir", str(finished_run.parent))
    return finished_run.parent / "refused", done


def test_a_model_that_does_not_pass_the_gate_ends_the_run_red_and_is_kept(
    refused_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = refused_run
    assert done.returncode == 1
    assert (run / "model" / "model.safetensors").is_file()
    assert (run / "report.html").is_file()
    assert not (run / "model" / "onnx").exists()
    assert json.loads((run.parent / "served.json").read_text(encoding="utf-8"))["run"] == "first"


def test_a_failing_step_shows_its_own_error_last_and_once(
    refused_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = refused_run
    last = done.stdout.strip().splitlines()
    assert last[-1].startswith("distrinews run: step gate failed: accuracy 0.")
    assert f"resume with: distrinews run --runs-dir {run.parent} --name refused --from gate" in last[-2]
    assert done.stdout.count("points below min_accuracy") == 1
    assert "Traceback" not in done.stdout


def test_bars_reach_the_terminal_through_the_pipeline(
    refused_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """On a terminal each step draws its bar there, though its own output is a pipe."""
    _, done = refused_run
    assert "train: epoch 1/1:" in done.stdout
    assert "steps/s" in done.stdout or "s/ steps" in done.stdout


def test_the_same_data_in_another_run_is_preprocessed_once(
    refused_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = refused_run
    assert "used again from" in done.stdout
    assert (run / "dataset" / "tokens.bin").stat().st_nlink == 2


def test_a_run_resumes_from_the_step_that_failed(refused_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, _ = refused_run
    trained = (run / "model" / "model.safetensors").stat().st_mtime_ns
    done = distrinews(
        "run", "--runs-dir", str(run.parent), "--name", "refused", "--from", "gate", "--min-accuracy", "0.5"
    )
    assert done.returncode == 0, done.stderr
    assert [f"{step}: kept from before" in done.stdout for step in STEPS] == [True] * 3 + [False] * 3
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == trained
    assert facts(run)["settings"]["min_accuracy"] == 0.5
    assert facts(run)["settings"]["data"] == "sample:1500", "a setting that is not given again keeps its value"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--name", "first"], "--name first: .* is there already; give another name, or resume it with --from STEP"),
        (["--name", "none", "--from", "gate"], "is no run, it has no run.json; the runs in .* are .*first"),
        (["--name", "first", "--from", "evaluate", "--epochs", "9"], "epochs is now 9, but step train of first ran with 2"),
        (["--name", "a b"], "--name 'a b': a run is named by 1 to 63 letters"),
        (["--name", "../a"], "--name '../a': a run is named by 1 to 63 letters"),
        (["--from", "gate"], "--from gate: name the run with --name"),
        (["--name", "new2", "--model", "./nowhere"], "step preprocess failed: --model ./nowhere: no such folder"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_start_has_the_reason_in_its_last_line(
    finished_run: Path, args: list[str], line: str
) -> None:
    done = distrinews("run", "--runs-dir", str(finished_run.parent), *args)
    assert done.returncode in (1, 2)
    assert re.search(line, done.stderr.strip().splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_run_without_usable_data_makes_no_folder(tmp_path: Path) -> None:
    for content in (None, "comment,kind\na,b\n"):
        data = write(tmp_path / "my.csv", content) if content else tmp_path / "absent.csv"
        with pytest.raises(UserError, match=f"{data}: (no such file|which column is the text)"):
            build(Run, {"data": str(data), "name": "a", "runs_dir": tmp_path / "runs"}).run()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_the_command_and_its_steps_has_training_save(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    command = [str(DISTRINEWS), "run", "--data", "sample:1500", "--epochs", "500", "--ranks", "1", "--runs-dir", str(tmp_path), "--name", "a"]  # fmt: skip
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(scratch)},
        process_group=0,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        for line in process.stdout:
            if line.startswith("train: epoch "):  # of its bar, or of its end
                os.killpg(process.pid, number)  # as a terminal and `timeout` do: the step gets it, and ours again
                break
        printed, errors = process.stdout.read(), process.stderr.read().splitlines()
    assert process.returncode == status
    assert "is saved; start again to resume" in printed
    assert "Traceback" not in printed
    assert errors[-1].startswith("distrinews run: step train failed: ")
    assert f"resume with: distrinews run --runs-dir {tmp_path} --name a --from train" in errors[-2]
    assert facts(tmp_path / "a")["steps"]["train"]["status"] == "failed"
    assert (tmp_path / "a" / "summary.md").is_file(), "the last step has run"
    assert list((tmp_path / "a" / "checkpoints").glob("epoch-*"))
    assert list(scratch.iterdir()) == [], "nothing is left in the folder for temporary files"


def test_sigterm_between_two_steps_is_the_reason_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(settings: RunSettings, folder: Path, **_: object) -> Ending:
        run = start_run(settings, folder, run_id="a")
        for step in STEPS[:-1]:
            run.update_step(step, status="succeeded")
        return Ending(succeeded=False, terminated=signal.SIGTERM, reason="export: shipped fp32")

    monkeypatch.setattr("pipelines.kubeflow.local.run_pipeline", terminated)
    assert run_here(RunSettings(), tmp_path / "a") == 75
    assert (
        capsys.readouterr().err.splitlines()[-1] == "distrinews run: step deploy failed: it was terminated by SIGTERM"
    )


def test_a_second_start_of_a_run_is_one_line_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(settings: RunSettings, folder: Path, **_: object) -> Ending:
        held, parent = folder / OF_RUN, os.getppid()
        facts = json.loads(held.read_text(encoding="utf-8"))
        held.write_text(json.dumps(facts | {"pid": parent, "started": _started(parent)}), encoding="utf-8")
        with pytest.raises(UserError, match=r"runs/a: is being run by process .* wait until it ends"):
            run_here(settings, folder, from_step="train")
        return Ending(succeeded=False, terminated=None, reason="no rows")

    monkeypatch.setattr("pipelines.kubeflow.local.run_pipeline", second)
    assert run_here(RunSettings(), tmp_path / "runs" / "a") == 1
    assert not (tmp_path / "runs" / "a").exists(), "a run that did not start leaves no folder"


def test_the_command_lists_its_commands_and_refuses_others() -> None:
    assert {"run", "serve", "compile"} <= set(distrinews("--help").stdout.split())
    wrong = distrinews("rum")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no command is called 'rum'; did you mean run?" in wrong.stderr
    assert distrinews("compile", "out.txt").returncode == 2


def test_help_comes_without_anything_heavy() -> None:
    code = (
        "import sys\n"
        "from pipelines.cli import main\n"
        "for command in ('run', 'bench', 'bench scaling', 'bench collectives', 'bench project'):\n"
        "    try: main([*command.split(), '--help'])\n"
        "    except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'kfp', 'numpy', 'scipy', 'datasets', 'onnxruntime'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--early-stopping-patience" in printed
    assert "--bandwidth-gigabytes" in printed
    assert printed.splitlines()[-1] == "[]"
