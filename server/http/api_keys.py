"""API keys: whose they are, by a hash of each, and the command `distrinews key` that makes one."""

import argparse
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

_NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
_NAME_MEANS = "a letter or digit, then up to 63 letters, digits, dots, dashes, underscores and @"
_LINE = re.compile(rf"({_NAME}):([0-9A-Fa-f]{{64}})")
_LOOK_SECONDS = 1.0  # between two looks at whether the file has changed
_log = logging.getLogger(__name__)

# SHA-256 without salt, and no slow hash: a key has 256 random bits, so nobody finds it by trying, and a hash that is slow
# to compute would only cost the server time at each request. It would not do for passwords.
Keys = Mapping[bytes, str]
"""Name by SHA-256 of the key. A name may have several keys, so that the next can be handed out before the last goes."""


class ApiKeysError(ValueError):
    """What is wrong with the keys, and where; never what stands there."""


def parse_api_keys(text: str, *, where: str) -> Keys:
    """Keys from lines NAME:SHA256; empty lines and those that begin with # say nothing."""
    keys: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if not (match := _LINE.fullmatch(stripped)):
            raise ApiKeysError(f"{where}, line {number}: should be NAME:SHA256, as distrinews key NAME prints it")
        digest = bytes.fromhex(match[2])
        if digest in keys:
            raise ApiKeysError(f"{where}, line {number}: this key stands there already, for {keys[digest]}")
        keys[digest] = match[1]
    if not keys:
        raise ApiKeysError(f"{where}: has no key; add a line, as distrinews key NAME prints it")
    return keys


def read_api_keys(file: Path) -> Keys:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ApiKeysError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ApiKeysError(f"{file}: is no text in UTF-8") from None
    return parse_api_keys(text, where=str(file))


class ApiKeys:
    """Says whose a key is. Keys from a file are read again when it changes; a broken one changes nothing but the log."""

    def __init__(self, keys: Keys, *, file: Path | None = None) -> None:
        self._keys, self._file = keys, file
        self._version = _version(file) if file else None
        self._look_at = time.monotonic() + _LOOK_SECONDS

    @classmethod
    def of_file(cls, file: Path) -> "ApiKeys":
        return cls(read_api_keys(file), file=file)

    def name_of(self, key: bytes) -> str | None:
        self._read_again_if_changed()
        digest, found = sha256(key).digest(), None
        for known, name in self._keys.items():  # all of them: the time taken says nothing of which
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _read_again_if_changed(self) -> None:
        now = time.monotonic()
        if self._file is None or now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        version = _version(self._file)  # before reading: what is written meanwhile shows at the next look
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = read_api_keys(self._file)
        except ApiKeysError as error:
            _log.warning("%s; the keys read before stay", error)
        else:
            _log.info("%s: read again, %d keys", self._file, len(self._keys))


def _version(file: Path) -> tuple[int, int, int] | None:
    """Changes when the file does, and when another takes its place, as in a mounted Secret."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _name(text: str) -> str:
    if not re.fullmatch(_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a caller: {_NAME_MEANS}")
    return text


def main(args: list[str] | None = None) -> None:
    """Make a key; it is shown here and kept nowhere."""
    parser = argparse.ArgumentParser(
        prog="distrinews key", description="Make a key with which to call the server in the header X-API-Key."
    )
    parser.add_argument("name", type=_name, metavar="NAME", help="whose key it is, as logs will say")
    name = parser.parse_args(args).name
    key = f"dn_{secrets.token_urlsafe(32)}"  # a prefix by which scanners for leaked secrets can know it
    print(f"key   {key}\nline  {name}:{sha256(key.encode()).hexdigest()}\n")
    print("Give the key to the caller: it is shown only now. Add the line to the file that --api-keys-file names.")
