"""The patches of kustomize that our manifests use, applied here too, so that nothing is said twice (RFC 6902: add, replace, remove)."""

from typing import Any

from server.errors import UserError


def apply_patch(value: Any, operations: list[dict[str, Any]]) -> None:  # noqa: ANN401 - whatever a manifest holds
    """Change nested values in place."""
    for operation in operations:
        *around, last = [_unescape(part) for part in operation["path"].split("/")[1:]]
        place = value
        for part in around:
            place = place[int(part) if isinstance(place, list) else part]
        _apply(place, last, operation)


def _apply(place: Any, key: str, operation: dict[str, Any]) -> None:  # noqa: ANN401
    what = operation["op"]
    if what not in ("add", "replace", "remove"):
        raise UserError(f"a patch of manifests/ says {what!r}; known are add, replace and remove")
    if isinstance(place, list):
        number = len(place) if key == "-" else int(key)
        place[number : number + (what != "add")] = [] if what == "remove" else [operation["value"]]
    elif what == "remove":
        del place[key]
    else:
        if what == "replace" and key not in place:
            raise UserError(f"a patch of manifests/ replaces {operation['path']}, which is not there")
        place[key] = operation["value"]


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
