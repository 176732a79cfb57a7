"""The command `distrinews compile`."""

import argparse
import logging
from importlib.metadata import version
from pathlib import Path


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="distrinews compile", description="Write the pipeline as one uploads it in the Kubeflow UI."
    )
    parser.add_argument("output", type=Path, help="file to write, such as distrinews.yaml")
    parser.add_argument(
        "--manifests", metavar="NAMESPACE", default=None,
        help="write Pipeline and PipelineVersion of this namespace instead, for kubectl apply and GitOps",
    )  # fmt: skip
    given = parser.parse_args(args)
    output: Path = given.output
    if output.suffix not in (".yaml", ".yml"):
        parser.exit(2, f"{parser.prog}: error: {output}: the file is YAML, so its name ends in .yaml\n")
    write(output, namespace=given.manifests)
    next_step = (
        f"kubectl apply -f {output}"
        if given.manifests
        else "upload it in the Kubeflow UI, under Pipelines, Upload pipeline"
    )
    print(f"wrote {output}: {next_step}")


def write(output: Path, *, namespace: str | None = None) -> None:
    """The same bytes each time, for the same version: a package, or with a namespace the manifests of its resources there."""
    from kfp import compiler

    from pipelines.kubeflow.pipeline import distrinews

    logging.getLogger("kfp").setLevel(logging.ERROR)
    output.parent.mkdir(parents=True, exist_ok=True)
    options = compiler.KubernetesManifestOptions(
        pipeline_version_name=f"distrinews-{version('distrinews').replace('.', '-')}",
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    compiler.Compiler().compile(
        distrinews, str(output), kubernetes_manifest_format=namespace is not None, kubernetes_manifest_options=options
    )
