"""Pages: what their headers forbid a browser, and /docs, which loads nothing from elsewhere."""

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

_INLINE_SCRIPT = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)


def page_headers(html: str, *, frame_origins: Sequence[str]) -> dict[str, str]:
    """Headers for a page: it runs its own scripts and this server's, asks only this server, and stands in no other's frame."""
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


def add_docs(app: FastAPI, *, frame_origins: Sequence[str]) -> None:
    """Swagger UI at /docs; its files come from a package, so that it works where there is no internet."""
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    page = get_swagger_ui_html(
        title=f"{app.title} API",
        openapi_url="openapi.json",  # relative, so that a proxy may put a path before all
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
    )
    html = bytes(page.body).decode()
    headers = page_headers(html, frame_origins=frame_origins)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)
