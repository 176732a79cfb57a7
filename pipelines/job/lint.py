"""The command `distrinews job lint`: strict checks of PyTorchJob manifests, each finding with its line and how to mend it."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pipelines.job.backends.pytorchjob import KIND
from pipelines.job.document import Document, Finding, read_documents
from pipelines.job.pod_rules import check_pods
from pipelines.job.rules import check_job
from pipelines.job.schema import check_schema, with_right_types
from server.errors import UserError


def lint(text: str) -> list[Finding]:
    """Findings in a file, by line; other kinds of objects in it are left alone, but it has to hold a job."""
    findings: list[Finding] = []
    jobs = 0
    for document in read_documents(text):
        findings += document.findings
        for job in _jobs(document):
            jobs += 1
            findings += check(job)
        jobs += document.value is None  # its syntax has been told of
    if not jobs:
        findings.append(Finding(1, "no-job", f"there is no {KIND} here", f"give a file with one, with kind: {KIND}"))
    return sorted(set(findings))


def check(job: Document) -> Iterator[Finding]:
    """Findings in one job."""
    yield from check_schema(job)
    job = replace(job, value=with_right_types(job.value))
    for rules in (check_job, check_pods):
        for place, rule, message, mend in rules(job):
            yield Finding(job.line_of(place), rule, message, mend)


def _jobs(document: Document) -> Iterator[Document]:
    if document.get("kind") == KIND:
        yield document
    elif str(document.get("kind")).endswith("List"):
        items = document.get("items")
        for number, item in enumerate(items if isinstance(items, list) else []):
            lines = {path[2:]: line for path, line in document.lines.items() if path[:2] == ("items", number)}
            inner = Document(item, lines.get((), document.line), lines)
            yield from _jobs(inner)


def lint_files(names: Sequence[str], *, as_json: bool) -> int:
    """Print the findings in files, or in standard input for -; returns the exit status: 1 with findings."""
    found = [(name, finding) for name in names for finding in lint(_read(name))]
    if as_json:
        print(json.dumps([{"file": name, **asdict(finding)} for name, finding in found], indent=2))
    else:
        for name, finding in found:
            print(f"{name}:{finding.line}: {finding.rule}: {finding.message}; {finding.mend}")
        files = f"{len(names)} file{'s' if len(names) > 1 else ''}"
        print(f"{len(found)} findings in {files}" if found else f"{files}: nothing to mend", file=sys.stderr)
    return 1 if found else 0


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UserError(f"{name}: cannot be read: {reason}") from error
