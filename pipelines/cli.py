"""The command `distrinews`: which commands there are; each imports what it needs when it is called."""

import importlib
import sys
from importlib.metadata import version

_COMMANDS = {
    "run": ("pipelines.run", "the whole pipeline on this machine, from labelled texts to a served classifier"),
    "status": ("pipelines.status", "how far a run's training is, and what happened to it"),
    "serve": ("server.main", "a model over HTTP"),
    "job": ("pipelines.job.commands", "one training job on a cluster: lint, and more"),
    "predict": ("pipelines.predict.command", "many texts at once, by a model folder or a server"),
    "bench": ("pipelines.bench", "how training scales: measured, and projected to more processes"),
    "key": ("server.http.api_keys", "a new key, for whoever may call the server"),
    "submit": ("pipelines.kubeflow.submit", "the whole pipeline on a cluster, through Kubeflow Pipelines"),
    "compile": ("pipelines.kubeflow.compile", "the pipeline as the file that one uploads in the Kubeflow UI"),
}


def main() -> None:
    command, args = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if command in _COMMANDS:
        importlib.import_module(_COMMANDS[command][0]).main(args)
    elif command in ("-h", "--help"):
        print(_help())
    elif command == "--version":
        print(f"distrinews {version('distrinews')}")
    else:
        print(
            f"distrinews: error: no command is called {command!r}; the commands are {', '.join(_COMMANDS)}",
            file=sys.stderr,
        )
        raise SystemExit(2)


def _help() -> str:
    commands = "\n".join(f"  {name:10}{text}" for name, (_, text) in _COMMANDS.items())
    return f"usage: distrinews COMMAND [options]\n\ncommands:\n{commands}\n\ndistrinews COMMAND --help tells the options of each."
