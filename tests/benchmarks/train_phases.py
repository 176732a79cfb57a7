"""Where the time of a training step goes, as --profile-steps tells it: what is outside of forward, backward and optimizer.

python -m tests.benchmarks.train_phases [--folder FOLDER]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.record import table, wait_until_quiet, write
from tests.benchmarks.train import write_inputs
from tests.support.data import AG_NEWS

_PHASES = ("forward", "backward", "optimizer", "load", "exchange", "log", "save", "rest")
_TARGET = 0.03
_SECONDS = 200
_ABOUT = """
The trainer itself, a model of DistilBERT size, 32 rows a rank, lengths of AG News where it is there. Shares are of a step's wall time, and
add up to 100 %. `exchange` is the time from a rank's last own gradient to the moment when it has the mean over ranks of its part: waiting for the other
rank, and adding up. `optimizer` ends when all ranks have updated their parts of the weights. `outside` is all but forward, backward and optimizer. `save` is the agreement between
ranks on when to save or stop, and saving.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="to be measured, of each")
    parser.add_argument("--folder", type=Path, help="where dataset and model are made, or are already")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    args = parser.parse_args()
    load, rows = wait_until_quiet(args.wait_minutes), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "inputs"
        if not (folder / "model").is_dir():
            write_inputs(folder, data=str(AG_NEWS) if AG_NEWS.is_dir() else "sample", tokenizer="tiny")
        for ranks, threads in ((1, 2), (2, 1)):
            for precision in ("bf16", "fp32"):
                output = Path(scratch) / f"{precision}-{ranks}"
                found = profile(folder, output, ranks=ranks, threads=threads, precision=precision, steps=args.steps)
                label = f"{ranks} rank{'s' * (ranks > 1)} × {threads} thread{'s' * (threads > 1)}, {precision}"
                rows += [_row(f"{label}, rank {rank}", one) for rank, one in enumerate(found)]
    write(
        "train_phases",
        title="Where a training step's time goes",
        command="python -m tests.benchmarks.train_phases",
        packages=("torch", "transformers"),
        parts=[_ABOUT, table(rows), f"The target for `outside` is below {_TARGET:.0%}. {load}"],
    )


def profile(
    folder: Path, output: Path, *, ranks: int, threads: int, precision: str, steps: int
) -> list[dict[str, Any]]:
    """What each rank wrote; training is ended when they have."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "trainer.train",
        "--dataset", str(folder / "dataset"), "--model", str(folder / "model"), "--output", str(output), "--precision", precision,
        "--profile-steps", str(steps),
    ]  # fmt: skip
    files = [output / "logs" / "profile" / f"phases-rank{rank}.json" for rank in range(ranks)]
    until = time.monotonic() + _SECONDS
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}) as process:
        while not all(file.is_file() for file in files):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        process.terminate()
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _row(label: str, found: dict[str, Any]) -> dict[str, object]:
    shares = {name: f"{found['phases'].get(name, 0):.1%}" for name in _PHASES}
    outside = found["outside"]
    return {
        "Ranks": label, "Step, ms": f"{found['step_ms']:,.0f}", **shares, "outside": f"{outside:.1%}",
        "without exchange": f"{outside - found['phases'].get('exchange', 0):.1%}", "target": "met" if outside < _TARGET else "not met",
    }  # fmt: skip


if __name__ == "__main__":
    main()
