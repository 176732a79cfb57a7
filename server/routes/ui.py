"""The page at /ui: texts in, labels and probabilities out, in one file that loads nothing."""

from collections.abc import Sequence
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse

from server.routes.pages import page_headers


def add_ui(app: FastAPI, *, frame_origins: Sequence[str]) -> None:
    """The page, and the way to it from /."""
    html = (files("server.routes") / "ui.html").read_text(encoding="utf-8")
    headers = page_headers(html, frame_origins=frame_origins)

    @app.get("/ui", include_in_schema=False)
    async def ui() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("ui")
