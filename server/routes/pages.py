"""The pages /ui and /docs, and the headers that restrict what a browser does with them."""

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from server.settings import Settings

_INLINE_SCRIPT = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)


def router(settings: Settings, *, title: str) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    # The files of Swagger UI come from a package, so that the page works without the internet.
    routes.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    swagger = get_swagger_ui_html(
        title=f"{title} API",
        openapi_url="openapi.json",  # relative, so that a proxy may put a path before all
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
    )
    docs_page = bytes(swagger.body).decode()
    ui_page = (files("server.routes") / "ui.html").read_text(encoding="utf-8")
    docs_headers, ui_headers = (
        page_headers(page, frame_origins=settings.frame_origins) for page in (docs_page, ui_page)
    )

    @routes.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page, headers=docs_headers)

    @routes.get("/ui")
    async def ui() -> HTMLResponse:
        return HTMLResponse(ui_page, headers=ui_headers)

    @routes.get("/")
    async def root() -> RedirectResponse:
        return RedirectResponse("ui")

    return routes


def page_headers(html: str, *, frame_origins: Sequence[str]) -> dict[str, str]:
    """Returns headers that let a page run its own scripts, call only this server, and be framed only where named."""
    hashes = [b64encode(sha256(script.encode()).digest()).decode() for script in _INLINE_SCRIPT.findall(html)]
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(["'self'", *(f"'sha256-{value}'" for value in hashes)]),
        "style-src": "'self' 'unsafe-inline'",  # Swagger UI sets style attributes
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": " ".join(frame_origins) or "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Referrer-Policy": "no-referrer",
    }
    return headers if frame_origins else headers | {"X-Frame-Options": "DENY"}  # which cannot name an origin
