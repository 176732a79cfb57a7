"""Twenty times killed at random steps, and the proof that nothing is different; writes docs/benchmarks/kills.md.

.venv/bin/python -m tests.benchmarks.kills KILLS SEED
"""

import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.support.kills import kill_and_compare
from trainer.config import PreprocessConfig
from trainer.preprocess import preprocess

_FLAGS = ["--epochs", "3", "--batch-size", "16", "--precision", "fp32"]
_RESULTS = Path(__file__).parents[2] / "docs" / "benchmarks" / "kills.md"


def main() -> None:
    kills, seed = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        dataset, started = Path(folder) / "dataset", time.monotonic()
        preprocess(PreprocessConfig(data="sample:600", max_length=64, validation_fraction=0.1), dataset)
        found = kill_and_compare(dataset, Path(folder), kills=kills, seed=seed, flags=_FLAGS)
    text = f"""# Killed {kills} times at random steps

Two processes train `tiny` with dropout on generated headlines, {found.steps} steps, `{" ".join(_FLAGS)} --checkpoint-steps 1`. Both are
killed with SIGKILL at random moments, {kills} times in one run, in steps and while checkpoints are written, and started again each time. The
same run is then compared with one that was never killed, bit for bit.

| what | found |
| --- | --- |
| last step in the log at each kill | {", ".join(map(str, found.at))} |
| loss, learning rate and rows of all {found.steps} steps, and validation | {"equal" if found.losses_equal else "DIFFERENT"} |
| final weights | {"equal" if found.weights_equal else "DIFFERENT"} |

`python -m tests.benchmarks.kills {kills} {seed}`, {time.monotonic() - started:.0f} s; Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}.
"""
    _RESULTS.write_text(text, encoding="utf-8")
    print(text)
    assert found.losses_equal
    assert found.weights_equal


if __name__ == "__main__":
    main()
