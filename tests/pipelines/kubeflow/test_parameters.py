"""The form, `submit` and `run` give parameters, from which a run gets its settings."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from pipelines import TRAINER
from pipelines.deploy.settings import DeployConfig
from pipelines.job.settings import JobConfig
from pipelines.kubeflow.parameters import from_parameters, start_from_parameters, to_parameters
from pipelines.run_folder import RunFolder, RunSettings
from pipelines.steps import run_step
from server.errors import UserError
from server.files import write_json
from tests.support.parameters import parameters

pytestmark = pytest.mark.slow  # kfp takes seconds to make the pipeline


def as_kubeflow_gives(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Returns a value with each whole number as a float, which a STRUCT makes of it."""
    if isinstance(value, dict):
        return {name: as_kubeflow_gives(one) for name, one in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def test_the_first_step_takes_every_parameter_of_the_pipeline() -> None:
    from pipelines.kubeflow.pipeline import distrinews, start

    takes = inspect.signature(start.python_func).parameters
    form = inspect.signature(distrinews.pipeline_func).parameters
    assert {name: parameter.annotation for name, parameter in takes.items() if name != "run_id"} == {
        name: parameter.annotation for name, parameter in form.items()
    }


def test_the_defaults_of_the_form_are_those_of_the_settings() -> None:
    claim, path = "distrinews-workspace", "/workspace"
    job = JobConfig(image=TRAINER, claim=claim, mount_path=path)
    expected = RunSettings(job=job, deploy=DeployConfig(claim=claim, mount_path=path))
    assert from_parameters(parameters()) == expected
    assert (expected.backend, expected.deploy.backend) == ("pytorchjob", "helm")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"data": "a.csv", "text_column": ("a", "b"), "learning_rate": 1e-4, "early_stopping_patience": 2, "ranks": 2},
        {"backend": "local", "deploy": {"backend": "local"}, "epochs": 3, "min_accuracy": 0.0},
        {"job": {"nodes": 4, "gpus": 2, "env": {"A": "1"}}, "deadlines": {"run_minutes": None}, "deploy": {"release": "news"}},
    ],
)  # fmt: skip
def test_parameters_give_back_the_settings_from_which_they_were_made(values: dict[str, Any]) -> None:
    settings = RunSettings.model_validate(values)
    given = as_kubeflow_gives(to_parameters(settings))
    assert set(given) <= set(parameters())
    found = from_parameters(parameters(**given, claim="ours"))
    assert found.job.claim == (None if settings.backend == "local" else "ours")
    place = {"claim": settings.job.claim, "mount_path": "/workspace"}
    assert found.model_copy(update={"job": found.job.model_copy(update=place), "deploy": settings.deploy}) == settings


def test_a_field_that_has_its_default_leaves_a_resumed_run_as_it_was() -> None:
    earlier = RunSettings(epochs=5, min_accuracy=0.9, job=JobConfig(nodes=4, queue="news")).model_dump(mode="json")
    found = from_parameters(parameters(batch_size=16.0, settings={"job": {"queue": "b"}}), earlier=earlier)
    assert (found.epochs, found.batch_size, found.min_accuracy) == (5, 16, 0.9)
    assert (found.job.nodes, found.job.queue) == (4, "b")
    back = to_parameters(RunSettings(batch_size=32))
    assert back["settings"]["batch_size"] == 32, (
        "what is set to the form's default goes where it cannot be taken for left out"
    )
    assert from_parameters(parameters(**back), earlier=earlier | {"batch_size": 8}).batch_size == 32


def test_an_accuracy_of_zero_is_a_value_and_epochs_and_a_learning_rate_of_zero_are_chosen_by_the_data() -> None:
    found = from_parameters(parameters(min_accuracy=0.0, epochs=0.0, learning_rate=0.0, text_column=""))
    assert (found.min_accuracy, found.epochs, found.learning_rate, found.text_column) == (0.0, None, None, ())


def test_the_image_of_the_job_is_that_of_the_steps_unless_it_is_set() -> None:
    assert from_parameters(parameters(trainer_image="mine:1")).job.image == "mine:1"
    own = parameters(trainer_image="mine:1", settings={"job": {"image": "other:2"}})
    assert from_parameters(own).job.image == "other:2"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"train_epochs": 2}, "train_epochs is now epochs"),
        ({"input_data": "a.csv"}, "input_data is now data"),
        ({"model_seed": 2}, "model_seed is now seed"),
        ({"job_nodes": 2}, "job_nodes is now job.nodes"),
        ({"deadline_run_minutes": 2}, "deadline_run_minutes is now deadlines.run_minutes"),
        ({"deploy_release": "a"}, "deploy_release is now deploy.release"),
        ({"run_launch": "here"}, "run_launch is now backend"),
        ({"run_deploy": "here"}, "run_deploy is now deploy.backend"),
        ({"epoch": 2}, "no setting is called 'epoch'; did you mean 'epochs'?"),
        ({"job": {"node": 2}}, "no setting is called 'job.node'; did you mean 'job.nodes'?"),
        ({"job": 4}, "job = 4: is a group of settings"),
        ({"epochs": 0}, "--epochs 0: input should be greater than or equal to 1"),
        ({"job": {"gpus": 2, "processes": 3}}, "processes = 3 contradicts gpus = 2"),
    ],
)
def test_a_wrong_setting_ends_the_first_step_with_one_line(
    settings: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setenv("DISTRINEWS_WORKSPACE", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        start_from_parameters(parameters(run_name="x", settings=settings))
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"start: error: {line}")
    assert printed.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_run_of_an_earlier_version_is_not_resumed_with_half_of_its_settings(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"settings": {}, "cluster": {"launch": "job"}, "steps": {}}', encoding="utf-8")
    with pytest.raises(UserError, match="was written by an earlier version"):
        _ = RunFolder(tmp_path).settings


def test_settings_too_long_for_a_command_come_from_a_file_and_others_win(tmp_path: Path) -> None:
    names = [f"class-{number}" for number in range(20_000)]
    write_json(tmp_path / "settings.json", {"data": "my.csv", "class_names": names, "epochs": 2, "job": {"nodes": 4}})
    settings = {"config": str(tmp_path / "settings.json"), "job": {"cpu": "2"}, "epochs": 9}
    found = from_parameters(parameters(settings=settings))
    assert found.class_names == tuple(names)
    assert (found.data, found.epochs, found.job.nodes, found.job.cpu) == ("my.csv", 9, 4, "2")


def test_the_deploy_step_is_a_helm_release_unless_it_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRINEWS_WORKSPACE", str(tmp_path))
    given = parameters(
        run_name="first", backend="local", settings={"deploy": {"values": "replicas: 3", "verify_texts": 7.0}}
    )
    folder = start_from_parameters(given)
    received: list[DeployConfig] = []

    def deploy_on_cluster(_: RunFolder, config: DeployConfig) -> dict[str, str]:
        received.append(config)
        return {"revision": "2"}

    monkeypatch.setattr("pipelines.deploy.release.deploy_on_cluster", deploy_on_cluster)
    assert run_step("deploy", folder) == folder
    assert received == [DeployConfig(mount_path=str(tmp_path), values="replicas: 3", verify_texts=7)]
    assert RunFolder(Path(folder)).facts["steps"]["deploy"]["outcome"] == {"revision": "2"}
