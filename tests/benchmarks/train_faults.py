"""What the trainer does when things go wrong: each fault made for real, to two ranks under torchrun, and what the log says.

python -m tests.benchmarks.train_faults
"""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.record import table, write
from tests.support.kills import same_weights
from tests.support.ranks import steps_done
from tests.support.torchrun import SECONDS, Run
from trainer.checkpoint.store import names, what_is_wrong
from trainer.config import PreprocessConfig
from trainer.distributed.preemption import PREEMPTED
from trainer.distributed.watchdog import HUNG
from trainer.monitoring.training_log import read_log
from trainer.preprocess import preprocess

_SETTINGS = ["--batch-size", "16", "--precision", "fp32", "--log-steps", "1"]
_SHORT = ["--epochs", "2", "--checkpoint-steps", "4"]
_LONG = ["--epochs", "60", "--checkpoint-steps", "100"]
_ABOUT = """
Two ranks under torchrun, over Gloo, train `tiny` on generated headlines, `{settings}`. Each fault is made for real, and what is said to
hold is asserted. Lines of the log are verbatim, but for shortened paths and where they end in `…`. Seconds are those from the fault to the
end of all processes; where the fault was there from the start, from the start of torchrun, most of which are imports. torchrun itself
ends with 1 when a rank ends with anything but 0; a rank with -15 was still ending when torchrun ended it, as another had. All of it took {seconds:.0f} s.
"""
_SMALL_DISK = """
mount -t tmpfs -o size=10m none "$0" && "$@"; status=$?
cp -a "$0/." "$0-kept"; exit $status
"""


@dataclass
class Faults:
    folder: Path
    rows: list[dict[str, str]] = field(default_factory=list)

    def run(self, name: str, *flags: str, like: Path | None = None, **given: object) -> Run:
        """A run of that name, which goes on from a copy of the run `like`."""
        if like:
            shutil.copytree(like, self.folder / name)
        return Run(self.folder / name, *_SETTINGS, *flags, **given)  # type: ignore[arg-type]  # Run knows the types

    def add(
        self, fault: str, how: str, run: Run, says: list[str], holds: dict[str, bool], *, status: int, seconds: float = SECONDS,
        ended: tuple[str, float] | None = None,
    ) -> None:  # fmt: skip
        """A row; AssertionError unless the log has these lines, the status is this, it took no longer, and all holds."""
        code, took = ended or run.end()
        lines = [self._line(pattern, run.said) for pattern in says]
        holds |= {f"ended within {seconds:.0f} s": took <= seconds} if seconds < SECONDS else {}
        assert re.search(rf"(^|: ){status}\b", code), f"{fault}: {code}\n{run.said}"
        assert all(holds.values()), f"{fault}: {holds}, {took:.1f} s\n{run.said}"
        self.rows.append(
            {"Fault": fault, "Injected by": how, "The log says": "<br>".join(lines), "Exit status": code,
             "Seconds": f"{took:.1f}", "Held": "; ".join(holds) or "yes"}
        )  # fmt: skip
        print(f"{fault}: {code}, {took:.1f} s", flush=True)

    def _line(self, pattern: str, said: str) -> str:
        found = next((line for line in said.splitlines() if re.search(pattern, line)), None)
        assert found is not None, f"no line {pattern!r} in:\n{said}"
        short = found.strip().replace("|", "\\|")
        for path in (self.folder, Path.cwd(), Path(sys.executable).parent):
            short = short.replace(str(path), "…")
        return f"`{short if len(short) < 330 else short[:330] + '…'}`"


def main() -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        faults = Faults(Path(scratch).resolve())
        for name, rows in (("dataset", 600), ("dataset-other", 500)):
            config = PreprocessConfig(data=f"sample:{rows}", max_length=64, validation_fraction=0.1)
            preprocess(config, faults.folder / name)
        stopped = _killed(faults)
        _resumed_wrongly(faults, stopped)
        _damaged(faults, stopped)
        _full_disk(faults)
        _one_rank(faults)
        _sigterm(faults)
        _losses(faults)
        _ranks_that_differ(faults)
    write(
        "train_faults",
        title="Faults, and what the trainer does",
        command="python -m tests.benchmarks.train_faults",
        packages=("torch", "transformers", "safetensors"),
        parts=[
            _ABOUT.format(settings=" ".join(_SETTINGS), seconds=time.monotonic() - began),
            table(faults.rows),
        ],
    )


def _killed(faults: Faults) -> Path:
    """The folder of a run that was killed in mid-epoch, for others to go on from."""
    with faults.run("stopped", *_SHORT) as run:
        run.at_step(9)
        while len(names(run.output / "checkpoints")) < 2:  # for others to damage the newest
            assert run.process.poll() is None, run.said
            time.sleep(0.005)
        for rank in run.ranks:
            rank.kill()
        run.process.kill()
    with faults.run("whole", *_SHORT) as whole:
        assert whole.process.wait(SECONDS) == 0, whole.said
    with faults.run("killed", *_SHORT, like=run.output) as again:
        ended = again.end()
        says = [r"^train: going on from .*checkpoints/epoch-0000-step-\d+: 0 epochs, \d+ steps", r"the model is in"]
        same = same_weights(again.output, whole.output)
        faults.add(
            "all ranks killed in mid-epoch", "SIGKILL to all after two checkpoints, then started again (20 in a row: kills.md)", again,
            says, {"weights bit for bit those of a run left alone": same}, status=0, ended=ended,
        )  # fmt: skip
    return run.output


def _resumed_wrongly(faults: Faults, stopped: Path) -> None:
    before = names(stopped / "checkpoints")
    for fault, name, flags, says in (
        ("another number of ranks", "world", (), "was made with world_size = 2, now it is 1"),
        ("another setting", "setting", ("--learning-rate", "1e-4"), "was made with learning_rate = None, now it is 0.0001"),
        ("another model", "model", ("--model", str(faults.folder / "whole" / "model")), "was made with model = tiny, now it is "),
        ("another dataset", "data", ("--dataset", str(faults.folder / "dataset-other")), "was made with dataset = "),
    ):  # fmt: skip
        with faults.run(name, *_SHORT, *flags, like=stopped, ranks=1 if name == "world" else 2) as run:
            how = f"`{flags[0]}` when going on" if flags else "one rank goes on from a checkpoint of two"
            ended = run.end()
            there = names(run.output / "checkpoints") == before
            faults.add(fault, how, run, [says], {"refused; checkpoints untouched": there}, status=1, ended=ended)
    with faults.run("allowed", *_SHORT, "--allow-changed-world", like=stopped, ranks=1) as run:
        ended = run.end()
        lines = [line for line in read_log(run.output / "logs") if line["kind"] in ("start", "train")]
        faults.add(
            "another number of ranks, allowed", "the same with `--allow-changed-world`", run,
            [r"world_size was 2, now it is 1: going on", r"going on from"],
            {"each row seen once an epoch": lines[-1]["samples"] == lines[0]["total_samples"]}, status=0, ended=ended,
        )  # fmt: skip


def _tear(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


_DAMAGES: list[tuple[str, str, Callable[[Path], None]]] = [
    ("a torn checkpoint", "optimizer.safetensors of the newest cut in half", _tear),
    ("a bit of a checkpoint flipped", "one bit in the middle of its optimizer.safetensors", _flip),
    ("a file of a checkpoint missing", "its optimizer.safetensors removed", Path.unlink),
]


def _damaged(faults: Faults, stopped: Path) -> None:
    newest, before = names(stopped / "checkpoints")[:2]
    for number, (fault, how, damage) in enumerate(_DAMAGES):
        run = faults.run(f"damaged{number}", *_SHORT, like=stopped)
        damage(run.output / "checkpoints" / newest / "optimizer.safetensors")
        with run:
            ended = run.end()
            says = [rf"warning: .*{newest} is not whole: .*optimizer\.safetensors", rf"going on from .*{before}:"]
            same = same_weights(run.output, faults.folder / "whole")
            holds = {"the one before used; weights those of a run left alone": same}
            faults.add(fault, how, run, says, holds, status=0, ended=ended)
    run = faults.run("damaged", *_SHORT, like=stopped)
    for file in run.output.glob("checkpoints/*/model.safetensors"):
        _tear(file)
    with run:
        says = ["none of 2 checkpoints is whole, see the warnings above"]
        fault, how = "all checkpoints damaged", "model.safetensors of each cut in half"
        faults.add(fault, how, run, says, {"does not start over unasked": True}, status=1)


def _full_disk(faults: Faults) -> None:
    output = faults.folder / "disk"
    output.mkdir()
    kept = output.with_name("disk-kept")
    kept.mkdir()
    before = ("unshare", "--map-root-user", "--mount", "sh", "-c", _SMALL_DISK, str(output))
    with faults.run("disk", *_SHORT, before=before) as run:
        ended = run.end()
        there = sorted(path.name for path in (kept / "checkpoints").iterdir())
        whole = there == ["epoch-0000-step-00000004", "latest"] and not what_is_wrong(kept / "checkpoints" / there[0])
        faults.add(
            "the disk is full", "a file system of 10 MB, in which the second checkpoint does not fit", run,
            ["a checkpoint cannot be written: .*No space left on device"],
            {"the first checkpoint whole, nothing half-written": whole}, status=1, ended=ended,
        )  # fmt: skip


def _one_rank(faults: Faults) -> None:
    with faults.run("restart", *_SHORT, "--epochs", "6", restarts=1) as run:
        run.at_step(9).ranks[1].kill()
        ended = run.process.wait(SECONDS)
        starts = [line for line in read_log(run.output / "logs") if line["kind"] == "start"]
        goes_on = {f"went on from step {starts[-1]['step']}": len(starts) == 2 and starts[-1]["step"] >= 4}
        faults.add(
            "one rank killed, with a restart", "SIGKILL to rank 1, `torchrun --max-restarts 1`; seconds until training goes on", run,
            [r"failed \(exitcode: -?\d+\) local_rank", "going on from", "the model is in"], goes_on, status=0,
            ended=(str(ended), starts[-1]["time"] - run.began),
        )  # fmt: skip
    with faults.run("one-killed", *_LONG) as run:
        run.at_step(5).ranks[1].kill()
        faults.add("one rank killed", "SIGKILL to rank 1", run, [r"exitcode *: -9"], {}, status=-9, seconds=30)
    for fault, how, name, says in (
        ("one rank raises", "ValueError in its fourth step", "error", ["ValueError: this rank has a bug"]),
        ("one rank out of memory", "an allocation that fails, in its fourth step", "out_of_memory", ["t allocate memory|invalid size|out of memory"]),
    ):  # fmt: skip
        with faults.run(name, *_LONG, fault=name) as run:
            faults.add(fault, how, run, says, {}, status=1, seconds=30)
    with faults.run("hang", *_LONG, "--hang-minutes", "0.1", fault="hang") as run:
        says = [
            r"rank 0 hangs: no progress for 0.1 minutes",
            r"rank 1 hangs",
            r"line \d+ in train_step",
            "in asleep",
        ]
        faults.add(
            "one rank hangs", "rank 1 sleeps in its fourth step, `--hang-minutes 0.1`", run, says,
            {"the stacks of both ranks are in the log": run.process.wait(SECONDS) != 0}, status=HUNG, seconds=30,
        )  # fmt: skip


def _sigterm(faults: Faults) -> None:
    for fault, name, times in (("SIGTERM to one rank", "term", 1), ("SIGTERM to one rank, twice", "twice", 2)):
        with faults.run(name, *_LONG) as run:
            rank = run.at_step(5).ranks[1]
            for _ in range(times):
                rank.terminate()
                time.sleep(0.02)
            ended = run.end()
            says = [r"SIGTERM: step [\d,]+ is saved; start again to go on"]
            faults.add(fault, "rank 1", run, says, _saved(run), status=PREEMPTED, seconds=20, ended=ended)
    with faults.run("term-all", *_LONG) as run:
        run.at_step(5).process.send_signal(signal.SIGTERM)
        ended = run.end()
        says = [r"SIGTERM: step [\d,]+ is saved; start again to go on"]
        how = "as Kubernetes ends a pod; torchrun passes it on"
        faults.add("SIGTERM to torchrun", how, run, says, _saved(run), status=1, seconds=20, ended=ended)


def _saved(run: Run) -> dict[str, bool]:
    latest = (run.output / "checkpoints" / "latest").read_text(encoding="utf-8")
    whole = not what_is_wrong(run.output / "checkpoints" / latest)
    return {"the last step is in a whole checkpoint": whole and latest.endswith(f"-{steps_done(run.output):08}")}


def _losses(faults: Faults) -> None:
    with faults.run("infinite", *_SHORT, fault="infinite_loss") as run:
        ended = run.end()
        lines = read_log(run.output / "logs")
        samples = {line["step"]: line["samples"] for line in lines if line["kind"] == "train"}
        skipped = [len(line["rows"]) for line in lines if line["kind"] == "skipped"]
        says = ["step 4 is skipped: its gradient norm is nan; 1 skipped so far", "the model is in"]
        holds = {"skipped once, its rows in the log": skipped == [samples[4] - samples[3]]}
        faults.add(
            "a loss that is not finite", "infinite on rank 1 in one step", run, says, holds, status=0, ended=ended
        )
    with faults.run("infinite-ones", *_SHORT, "--max-skipped-steps", "3", fault="infinite_losses") as run:
        how = "infinite on rank 1 from the fourth step on, `--max-skipped-steps 3`"
        says = [r"3 steps in a row, the last of them 6, had .* not finite; .* training rows \d+, .* lines \d+"]
        faults.add("losses that are not finite", how, run, says, {"stopped, with the rows": True}, status=1)
    with faults.run("spike", *_SHORT, fault="large_loss") as run:
        ended = run.end()
        spikes = [line["step"] for line in read_log(run.output / "logs") if line["kind"] == "spike"]
        holds = {"reported once, training goes on": spikes == [13]}
        says = ["warning: step 13: the loss is"]
        faults.add("a loss spike", "nine times the loss, in one step", run, says, holds, status=0, ended=ended)


def _ranks_that_differ(faults: Faults) -> None:
    for fault, name, says in (
        ("ranks with other settings", "other_batch_size", "batch_size is 16 on rank 0, 8 on rank 1"),
        ("ranks with other libraries", "other_library", r"safetensors is [\d.]+ on rank 0, 0.4.0 on rank 1"),
        ("ranks with other data", "other_dataset", r"dataset is \w+ on rank 0, \w+ on rank 1"),
    ):
        with faults.run(name, *_SHORT, fault=name) as run:
            ended = run.end()
            untrained = {"before the first step": steps_done(run.output) == 0}
            how = f"rank 1: {name.replace('_', ' ')}"
            faults.add(
                fault, how, run, [f"processes of this training differ: {says}"], untrained, status=1, ended=ended
            )


if __name__ == "__main__":
    main()
