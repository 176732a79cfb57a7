"""The command `distrinews compile`."""

import argparse
import logging
from pathlib import Path


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="distrinews compile", description="Write the pipeline as one uploads it in the Kubeflow UI."
    )
    parser.add_argument("output", type=Path, help="file to write, such as distrinews.yaml")
    output: Path = parser.parse_args(args).output
    if output.suffix not in (".yaml", ".yml"):
        parser.exit(2, f"{parser.prog}: error: {output}: the file is YAML, so its name ends in .yaml\n")
    write(output)
    print(f"wrote {output}: upload it in the Kubeflow UI, under Pipelines, Upload pipeline")


def write(output: Path) -> None:
    """The same bytes each time, for the same version."""
    from kfp import compiler

    from pipelines.pipeline import distrinews

    logging.getLogger("kfp").setLevel(logging.ERROR)
    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(distrinews, str(output))
