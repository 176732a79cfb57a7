"""The pipeline as a user runs it: one command, one folder a run, errors last, and the file for the Kubeflow UI."""

import inspect
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.deploy.local import serving
from pipelines.kubeflow import components
from pipelines.kubeflow import parameters as form
from pipelines.local import _use_this_interpreter
from pipelines.run_folder import STEPS, RunFolder, start_run
from server.client import Client, Prediction
from server.errors import UserError
from tests.conftest import DISTRINEWS, distrinews
from trainer.config import RunConfig


def facts(run: Path) -> dict[str, Any]:
    return RunFolder(run).facts


def test_a_run_ends_by_telling_accuracy_report_and_how_to_ask_the_server(finished_run: Path) -> None:
    last = (finished_run / "said.txt").read_text(encoding="utf-8").split("\ndone in ")[1]
    accuracy = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))["accuracy"]
    assert f"accuracy  {accuracy:.4f} on 152 test rows" in last
    assert f"report    {finished_run / 'report.html'}" in last
    assert f"distrinews serve {finished_run / 'model'}" in last
    assert "curl -s http://127.0.0.1:8080/predict" in last


def test_the_terminal_shows_what_the_steps_say_and_nothing_of_kubeflow(finished_run: Path) -> None:
    said = (finished_run / "said.txt").read_text(encoding="utf-8")
    assert [step for step in STEPS if f"\n{step}: " in said] == list(STEPS)
    assert "KFP" not in said
    assert "executor" not in said
    assert "KFP Executor" in (finished_run / "pipeline.log").read_text(encoding="utf-8")


def test_the_run_folder_holds_all_that_was_made_and_run_json_tells_of_it(finished_run: Path) -> None:
    assert {path.name for path in finished_run.iterdir()} >= {
        "dataset", "checkpoints", "logs", "model", "metrics.json", "report.html", "run.json", "pipeline.log",
    }  # fmt: skip
    told = facts(finished_run)
    assert [told["steps"][step]["status"] for step in STEPS] == ["succeeded"] * len(STEPS)
    assert all(told["steps"][step]["seconds"] > 0 for step in STEPS)
    assert told["settings"]["epochs"] == 2
    assert told["versions"]["torch"]
    assert told["steps"]["preprocess"]["outcome"]["fingerprint"]
    assert told["steps"]["train"]["outcome"]["ranks"] == min(2, len(os.sched_getaffinity(0)))
    assert "git_commit" in told


def test_the_model_served_at_the_end_is_noted_for_the_next_gate(finished_run: Path) -> None:
    served = json.loads((finished_run.parent / "served.json").read_text(encoding="utf-8"))
    assert (served["run"], served["model"]) == ("first", str(finished_run / "model"))


def test_the_server_that_deploy_asks_has_the_run_s_model_and_the_shell_s_engine_and_nothing_else_of_another_s_settings(
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
        said = b""
        try:
            while chunk := os.read(main, 65536):
                said += chunk
        except OSError:  # Linux ends a terminal that nobody holds with an error
            pass
    os.close(main)
    return subprocess.CompletedProcess(args, process.returncode, said.decode())


@pytest.fixture(scope="module")
def refused_run(finished_run: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run in the same workspace whose model is not good enough."""
    done = on_a_terminal(
        "run",
        "--data",
        "sample:1500",
        "--epochs",
        "2",
        "--batch-size",
        "16",
        "--ranks",
        "1",
        "--runs-dir",
        str(finished_run.parent),
        "--name",
        "refused",
        "--min-accuracy",
        "1.0",
        "--max-accuracy-drop",
        "0.1",
    )
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
    assert f"go on with: distrinews run --runs-dir {run.parent} --name refused --from gate" in last[-2]
    assert done.stdout.count("points below min_accuracy") == 1
    assert "Traceback" not in done.stdout


def test_bars_reach_the_terminal_through_the_pipeline(
    refused_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """On a terminal each step draws its bar there, though its own output is a pipe."""
    _, done = refused_run
    assert "train: epoch 1/2:" in done.stdout
    assert "steps/s" in done.stdout or "s/ steps" in done.stdout


def test_the_same_data_in_another_run_is_preprocessed_once(
    refused_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = refused_run
    assert "used again from" in done.stdout
    assert (run / "dataset" / "train" / "tokens.bin").stat().st_nlink == 2


def test_a_run_goes_on_from_the_step_that_failed(refused_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, _ = refused_run
    trained = (run / "model" / "model.safetensors").stat().st_mtime_ns
    done = distrinews(
        "run", "--runs-dir", str(run.parent), "--name", "refused", "--from", "gate", "--min-accuracy", "0.5"
    )
    assert done.returncode == 0, done.stderr
    assert [f"{step}: kept from before" in done.stdout for step in STEPS] == [True] * 3 + [False] * 3
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == trained
    assert facts(run)["settings"]["min_accuracy"] == 0.5
    assert facts(run)["settings"]["data"] == "sample:1500", "what is not said again is as it was"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--name", "first"], "--name first: .* is there already; give another name, or go on in it with --from STEP"),
        (["--name", "none", "--from", "gate"], "is no run, it has no run.json; the runs in .* are .*first"),
        (["--name", "first", "--from", "evaluate", "--epochs", "9"], "epochs is now 9, but step train of first ran with 2"),
        (["--name", "a b"], "--name 'a b': a run is named by 1 to 63 letters"),
        (["--from", "gate"], "--from gate: say with --name in which run"),
        (["--name", "new", "--data", "nowhere.csv"], "step preprocess failed: --data nowhere.csv: no such file or folder"),
        (["--name", "new2", "--model", "./nowhere"], "step preprocess failed: --model ./nowhere: no such folder"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_says_why_in_its_last_line(finished_run: Path, args: list[str], line: str) -> None:
    done = distrinews("run", "--runs-dir", str(finished_run.parent), *args)
    assert done.returncode in (1, 2)
    assert re.search(line, done.stderr.strip().splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_going_on_needs_every_earlier_step_to_have_succeeded(tmp_path: Path) -> None:
    start_run(RunConfig(), tmp_path / "a")
    with pytest.raises(UserError, match="step preprocess of a has not succeeded; go on with --from preprocess"):
        start_run(RunConfig(), tmp_path / "a", from_step="train")
    start_run(RunConfig(), tmp_path / "a", from_step="preprocess")


def test_a_path_with_python3_in_it_reaches_the_step_as_it_is() -> None:
    command = [
        "sh",
        "-c",
        'python3 -m kfp "$program_path/ephemeral_component.py" "$@"',
        "import x",
        '{"model": "lib/python3.11/model"}',
    ]
    assert _use_this_interpreter(command, "/bin/py") == [
        "sh", "-c", '/bin/py -m kfp "$program_path/ephemeral_component.py" "$@"', "import x", '{"model": "lib/python3.11/model"}',
    ]  # fmt: skip


def test_the_settings_component_takes_what_the_form_has() -> None:
    takes = inspect.signature(components.settings.python_func).parameters
    asked = form.signature().parameters
    assert {name: parameter.annotation for name, parameter in takes.items() if name != "run_id"} == {
        name: parameter.annotation for name, parameter in asked.items()
    }


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(
            data="a.csv",
            text_column=("a", "b"),
            learning_rate=1e-4,
            early_stopping_patience=2,
            max_train_rows=5,
            ranks=2,
        ),
    ],
)
def test_a_filled_form_gives_the_settings_back(config: RunConfig) -> None:
    filled = {name: float(value) if isinstance(value, int) else value for name, value in form.fill(config).items()}
    assert form.read(filled) == config, "Kubeflow hands integers over as floats"


def test_the_form_s_own_defaults_are_the_settings_own() -> None:
    assert form.read({entry.name: entry.default for entry in form.entries()}) == RunConfig()


def test_a_wrong_form_fails_in_the_first_step_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        **form.fill(RunConfig()),
        "train_epochs": 0,
        "run_workspace": str(tmp_path),
        "run_name": "x",
        "run_id": "",
        "run_from_step": "",
    }
    with pytest.raises(SystemExit) as ended:
        form.start_from_form(wrong)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "settings: error: --epochs 0: input should be greater than or equal to 1\n"
    assert not (tmp_path / "x").exists()


def test_the_command_tells_its_commands_and_refuses_others() -> None:
    assert {"run", "serve", "compile"} <= set(distrinews("--help").stdout.split())
    wrong = distrinews("rum")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no command is called 'rum'; the commands are run, " in wrong.stderr
    assert distrinews("compile", "out.txt").returncode == 2


def test_help_comes_in_under_a_second_and_without_anything_heavy() -> None:
    code = (
        "import sys, time; started = time.perf_counter()\n"
        "from pipelines import cli, run\n"
        "try: run.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'kfp', 'numpy', 'datasets', 'onnxruntime'} & set(sys.modules)\n"
        "print(time.perf_counter() - started, sorted(heavy))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, heavy = said.strip().splitlines()[-1].split(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 1
