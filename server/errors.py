"""Errors that more than one room raises or catches."""

INTERRUPTED = 130  # the exit status after Ctrl-C, as of a shell


class UserError(ValueError):
    """A fault that the user can fix: the message names the value, the place and what would be right, on one line."""


class ModelFolderError(UserError):
    """A model folder cannot be served; the message names the file and the fix."""


class QueueFullError(Exception):
    """The queue has no room for a request; there should be some after `retry_after_seconds`."""

    def __init__(self, reason: str, retry_after_seconds: int) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceededError(Exception):
    """The answer was not ready in time."""


class IssuerUnavailableError(Exception):
    """A token cannot be checked: its issuer's keys cannot be fetched."""
