"""The file of API keys, a line NAME:SHA256 each, and the command `distrinews key` that makes a key."""

import re
import secrets
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic_settings import CliPositionalArg

from server.cli import Command
from server.errors import UserError

_NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
_NAME_MEANS = "a letter or digit, then up to 63 letters, digits, dots, dashes, underscores and @"
_LINE = re.compile(rf"({_NAME}):([0-9A-Fa-f]{{64}})")

Keys = Mapping[bytes, str]
"""Name by SHA-256 of the key. A name may have several keys, so that the next can be handed out before the last is removed.

Without salt, and no slow hash: a key has 256 random bits, so nobody finds it by trying. It would not do for passwords.
"""


class ApiKeysError(UserError):
    """The keys cannot be read; the message names the place and never their content."""


class NoKeysError(ApiKeysError):
    """There is no key, so that nobody may be let in with one."""


def read_api_keys(file: Path) -> Keys:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise NoKeysError(f"{file}: cannot be read: {error.strerror}") from error
    except OSError as error:
        raise ApiKeysError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ApiKeysError(f"{file}: is no text in UTF-8") from None
    return parse_api_keys(text, where=str(file))


def parse_api_keys(text: str, *, where: str) -> Keys:
    """Parses lines NAME:SHA256; empty lines and those that begin with # are skipped."""
    keys: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if not (match := _LINE.fullmatch(stripped)):
            raise ApiKeysError(f"{where}, line {number}: should be NAME:SHA256, as distrinews key NAME prints it")
        digest = bytes.fromhex(match[2])
        if digest in keys:
            raise ApiKeysError(f"{where}, line {number}: this key has a line already, for {keys[digest]}")
        keys[digest] = match[1]
    if not keys:
        raise NoKeysError(f"{where}: has no key; add a line, as distrinews key NAME prints it")
    return keys


def _owner(name: str) -> str:
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"is no name of a caller: {_NAME_MEANS}")
    return name


class Key(Command):
    """Make a key with which to call the server in the header X-API-Key."""

    name: CliPositionalArg[Annotated[str, AfterValidator(_owner)]]
    """The key's owner, as logs will name it."""

    def run(self) -> None:
        """Prints a new key, which is kept nowhere, and its line for the server."""
        key = f"dn_{secrets.token_urlsafe(32)}"  # a prefix by which scanners for leaked secrets can know it
        print(f"key   {key}\nline  {self.name}:{sha256(key.encode()).hexdigest()}\n")
        print("Give the key to the caller: it is shown only now. Add the line to the file that --api-keys-file names.")
