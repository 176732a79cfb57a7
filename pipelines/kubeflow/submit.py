"""The command `distrinews submit`."""

from pathlib import Path
from typing import Any

from pipelines.cluster_config import GROUPS as CLUSTER_GROUPS
from pipelines.flags import parser
from pipelines.kubeflow import parameters as form
from pipelines.run_folder import STEPS
from server.cli import build, read_file
from server.errors import UserError
from trainer.config import GROUPS, RunConfig, own_fields

_PROGRAM = "distrinews submit"


def main(args: list[str] | None = None) -> None:
    """Run the pipeline on a Kubeflow endpoint; ends with status 1 when the run fails, 2 when a setting is wrong."""
    command = parser(
        _PROGRAM,
        "Run the whole pipeline on a cluster, through the Kubeflow Pipelines endpoint that the environment names: KFP_HOST, and "
        "KFP_TOKEN or KFP_COOKIES where it asks who you are, KFP_CA_FILE where its certificate is your own.",
        {group: (settings, own_fields(group)) for group, settings in GROUPS.items()},
    )
    for group in CLUSTER_GROUPS:
        section = command.add_argument_group(group)
        for entry in form.cluster_entries(group):
            section.add_argument(f"--{entry.name.replace('_', '-')}", metavar=entry.field.rsplit("_", 1)[-1].upper(),
                                 dest=entry.name, help=entry.help.replace("%", "%%"))  # fmt: skip
    there = command.add_argument_group("run")
    there.add_argument(
        "--config", metavar="FILE", type=Path, default=None, help="settings from a JSON or YAML file; flags win"
    )
    there.add_argument("--name", default="", help="name of the run (default: the id that Kubeflow gives it)")
    there.add_argument("--from", metavar="STEP", dest="from_step", choices=STEPS, default="",
                       help=f"go on from a step of the run that --name names: {', '.join(STEPS)}")  # fmt: skip
    there.add_argument("--claim", default=None, help="claim of the volume with the runs")
    there.add_argument("--trainer-image", default=None, help="image of the steps that read data or run the model")
    there.add_argument("--pipelines-image", default=None, help="image of the steps that speak with the cluster")
    there.add_argument("--namespace", default=None, help="of the profile, where Kubeflow has several users")
    there.add_argument("--experiment", default="distrinews", help="that the run is shown in (default distrinews)")
    there.add_argument("--schedule", metavar="CRON", default=None,
                       help="run at each of these times instead of now: six fields, seconds first, such as '0 0 3 * * *'")  # fmt: skip
    there.add_argument("--no-follow", action="store_true", default=False, help="end when the run is started")
    flags = vars(command.parse_args(args))
    names = ("config", "name", "from_step", "claim", "trainer_image", "pipelines_image", "namespace", "experiment", "schedule", "no_follow")  # fmt: skip
    place = {name: flags.pop(name) for name in names}
    try:
        _check(place)
        place["cluster"] = _cluster({name: flags.pop(name) for name in list(flags) if name in _CLUSTER_ENTRIES})
        config = build(RunConfig, {**(read_file(place["config"]) if place["config"] else {}), **flags})
    except UserError as error:
        command.exit(2, f"{_PROGRAM}: error: {error}\n")
    try:
        raise SystemExit(_submit(config, place))
    except UserError as error:
        command.exit(1, f"{_PROGRAM}: error: {error}\n")


_CLUSTER_ENTRIES = {entry.name: entry for group in CLUSTER_GROUPS for entry in form.cluster_entries(group)}


def _cluster(flags: dict[str, str]) -> dict[str, Any]:
    """These fields of the form, as the form has them; UserError when the settings that they make are wrong."""
    given: dict[str, Any] = {}
    for name, text in flags.items():
        kind = type(_CLUSTER_ENTRIES[name].default)
        try:
            given[name] = text.lower() in ("true", "yes", "1") if kind is bool else kind(text)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise UserError(f"--{name.replace('_', '-')} {text!r}: is not {expected}") from None
    shown = {name: parameter.default for name, parameter in form.signature().parameters.items()}
    form.read_cluster(shown | given)
    return given


def _check(place: dict[str, Any]) -> None:
    if place["from_step"] and not place["name"]:
        raise UserError(f"--from {place['from_step']}: say with --name in which run")
    if place["schedule"] and place["name"]:
        raise UserError(f"--name {place['name']} contradicts --schedule: each run needs a folder of its own")
    if place["schedule"] and len(place["schedule"].split()) != 6:
        raise UserError(f"--schedule {place['schedule']!r}: has not six fields, seconds first, such as '0 0 3 * * *'")


def _submit(config: RunConfig, place: dict[str, Any]) -> int:
    from pipelines.kubeflow.client import Access, Endpoint

    given = {
        "run_name": place["name"],
        "run_from_step": place["from_step"],
        "run_claim": place["claim"],
        "run_trainer_image": place["trainer_image"],
        "run_pipelines_image": place["pipelines_image"],
    }
    filled = form.fill(config) | place["cluster"] | {name: value for name, value in given.items() if value}
    endpoint = Endpoint(Access(), namespace=place["namespace"])
    ids = endpoint.upload()
    name = place["name"] or f"distrinews on {Path(config.data).name}"
    if place["schedule"]:
        recurring = endpoint.schedule(ids, name, filled, experiment=place["experiment"], cron=place["schedule"])
        print(f"{_PROGRAM}: scheduled as {recurring}", flush=True)
        return 0
    run_id = endpoint.run(ids, name, filled, experiment=place["experiment"])
    if place["no_follow"]:
        return 0
    try:
        return 0 if endpoint.follow(run_id) == "SUCCEEDED" else 1
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: the run goes on; its link stands above", flush=True)
        return 1
