"""The command `distrinews`: a table of commands, each of which imports what it needs when it is called."""

import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import NamedTuple, NoReturn


class Entry(NamedTuple):
    target: "str | dict[str, Entry]"
    """The command's class, as module:Class, or the commands below this one."""

    meaning: str
    extra: str = ""
    """The optional dependencies without which the command cannot work, as pip names them."""


COMMANDS = {
    "run": Entry("pipelines.run:Run", "run the whole pipeline on this machine, from labelled texts to a served model", "trainer,server,pipelines"),
    "status": Entry("pipelines.status:Status", "show how far a run's training is, and what happened to it", "trainer"),
    "serve": Entry("server.main:Serve", "serve a model over HTTP", "server"),
    "fetch": Entry("server.fetch:Fetch", "copy a model from a bucket, a hub or a URL to where a server reads it", "server"),
    "predict": Entry("pipelines.predict.command:Predict", "classify many texts by a model folder or a server", "server"),
    "key": Entry("server.http.api_keys:Key", "make an API key for a caller of the server"),
    "job": Entry({
        "lint": Entry("pipelines.job.commands:Lint", "check manifests of training jobs", "pipelines"),
        "render": Entry("pipelines.job.commands:Render", "write the job of a run as YAML, for kubectl apply", "pipelines"),
        "submit": Entry("pipelines.job.commands:Submit", "create the job of a run on the cluster, or attach to the one there is", "pipelines"),
        "status": Entry("pipelines.job.commands:Status", "show the state of all jobs, or of one and its pods", "pipelines"),
        "logs": Entry("pipelines.job.commands:Logs", "print the logs of all ranks of a job, and its events", "pipelines"),
        "delete": Entry("pipelines.job.commands:Delete", "delete a job and its pods; the run's folder stays", "pipelines"),
        "reap": Entry("pipelines.job.commands:Reap", "delete jobs that runs left: finished, or without a launcher", "pipelines"),
    }, "handle one training job on a cluster"),
    "submit": Entry("pipelines.kubeflow.commands:Submit", "run the whole pipeline on a cluster, through Kubeflow Pipelines", "pipelines"),
    "compile": Entry("pipelines.kubeflow.commands:Compile", "write the pipeline to a file that the Kubeflow UI uploads", "pipelines"),
    "bench": Entry({
        "scaling": Entry("trainer.bench.commands:Scaling", "measure speed-up and efficiency of training with 1 to N processes", "trainer"),
        "collectives": Entry("trainer.bench.commands:Collectives", "measure latency and bandwidth of collective operations", "trainer"),
        "project": Entry("trainer.bench.commands:Project", "project step time and efficiency to more processes than there are", "trainer"),
    }, "measure how training scales, and project it"),
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command that the first words name; ends with status 2 when there is none."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of Latin-1 shows ? for ≥
    words = list(sys.argv[1:] if words is None else words)
    entry, prog = Entry(COMMANDS, "take a text classifier from a CSV file to a service"), "distrinews"
    if words == ["--version"]:
        from importlib.metadata import version  # 30 ms, which --help need not wait for

        print(f"{prog} {version(prog)}")
        return
    while isinstance(entry.target, dict):
        word = words.pop(0) if words else "--help"
        if word in ("-h", "--help"):
            print(_listing(prog, entry.meaning, entry.target))
            return
        if word not in entry.target:
            _unknown(prog, word, entry.target)
        entry, prog = entry.target[word], f"{prog} {word}"
    try:
        _run(entry.target, words, prog)
    except KeyboardInterrupt:  # while a package is loaded
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("server", "trainer", "pipelines"):
            raise
        _fail(f"{prog}: error: the package {error.name} is not installed: pip install 'distrinews[{entry.extra}]'", 1)


def _run(target: str, words: list[str], prog: str) -> None:
    module, _, name = target.partition(":")
    command = getattr(import_module(module), name)
    from server.cli import run_command  # a fifth of a second, which a listing need not wait for

    run_command(command, words, prog=prog)


def _listing(prog: str, meaning: str, commands: dict[str, Entry]) -> str:
    lines = "\n".join(f"  {word:13}{entry.meaning}" for word, entry in commands.items())
    head = f"usage: {prog} COMMAND [options]\n\n{meaning[0].upper()}{meaning[1:]}."
    return f"{head}\n\ncommands:\n{lines}\n\n{prog} COMMAND --help lists the options of each."


def _unknown(prog: str, word: str, known: dict[str, Entry]) -> NoReturn:
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(known)}"
    _fail(f"{prog}: error: no command is called {word!r}; {hint}", 2)


def _fail(message: str, status: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(status)
