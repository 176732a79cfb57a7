"""Calls `distrinews fetch` in this process."""

from collections.abc import Sequence

from server.cli import run_command
from server.fetch import Fetch


def fetch_model(args: Sequence[str]) -> None:
    run_command(Fetch, args, prog="distrinews fetch")
