"""The application: a page, a small API, and its own checks."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guestbook import database, page
from guestbook.database import Database, DatabaseUnavailableError, Entry
from guestbook.settings import Settings

LOG = logging.getLogger("guestbook")
LIMITS = {"author": 60, "message": 500}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class InvalidEntryError(Exception):
    """What somebody sent is not an entry."""


class ResponseHeaders:
    """Say on every response, also a failed one, which version and machine answered."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._headers = {
            "X-Guestbook-Version": settings.version,
            "X-Guestbook-Machine": settings.machine,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; add to the head of its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def show_page(request: Request) -> HTMLResponse:
    """Answer with the page; without a database it says so with status 503."""
    entries: list[Entry] | None = None
    try:
        async with _database(request).connection() as connection:
            entries = await database.latest(connection)
    except DatabaseUnavailableError as error:
        LOG.warning("database unavailable: %s", error)
    return HTMLResponse(
        page.render(request.app.state.settings, entries),
        status_code=200 if entries is not None else 503,
        headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY},
    )


async def sign(request: Request) -> RedirectResponse:
    """Add the entry of the page's form."""
    form = parse_qs((await request.body()).decode(errors="replace"))
    author, message = _validate({name: values[0] for name, values in form.items()})
    async with _database(request).connection() as connection:
        await database.add(connection, author, message)
    return RedirectResponse("/", status_code=303)


async def list_entries(request: Request) -> JSONResponse:
    """Answer with the newest entries."""
    async with _database(request).connection() as connection:
        entries = await database.latest(connection)
    return JSONResponse({"entries": [_as_json(entry) for entry in entries]})


async def add_entry(request: Request) -> JSONResponse:
    """Add an entry and answer with it."""
    try:
        sent = await request.json()
    except ValueError:
        raise InvalidEntryError("the body is not JSON") from None
    author, message = _validate(sent)
    async with _database(request).connection() as connection:
        entry = await database.add(connection, author, message)
    return JSONResponse(_as_json(entry), status_code=201)


async def check_itself(request: Request) -> JSONResponse:
    """Write an entry, read it back the way the page does, and undo it."""
    async with (
        _database(request).connection() as connection,
        connection.transaction(force_rollback=True),
    ):
        written = await database.add(connection, "selfcheck", "written and taken back")
        is_read_back = written in await database.latest(connection)
    return JSONResponse({"read_back": is_read_back}, status_code=200 if is_read_back else 500)


async def is_alive(_: Request) -> PlainTextResponse:
    """Answer that this process serves; says nothing about the database."""
    return PlainTextResponse("ok\n")


async def is_ready(request: Request) -> PlainTextResponse:
    """Answer that this process serves and reaches the database."""
    async with _database(request).connection():
        return PlainTextResponse("ready\n")


async def answer_unavailable(_: Request, error: Exception) -> JSONResponse:
    """Answer a request that found no database."""
    LOG.warning("database unavailable: %s", error)
    return JSONResponse(
        {"error": "the database does not answer"}, status_code=503, headers={"Retry-After": "1"}
    )


async def answer_invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer a request that cannot be an entry."""
    return JSONResponse({"error": str(error)}, status_code=422)


def create() -> ASGIApp:
    """Build the application from the machine's credentials."""
    settings = Settings.load()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.settings = settings
        app.state.database = Database(settings)
        await app.state.database.open()
        yield
        await app.state.database.close()

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/entries", sign, methods=["POST"]),
            Route("/api/entries", list_entries),
            Route("/api/entries", add_entry, methods=["POST"]),
            Route("/api/selfcheck", check_itself, methods=["POST"]),
            Route("/healthz", is_alive),
            Route("/readyz", is_ready),
        ],
        exception_handlers={
            DatabaseUnavailableError: answer_unavailable,
            InvalidEntryError: answer_invalid,
        },
        lifespan=lifespan,
    )
    # Around everything: as a middleware of Starlette it would miss the answer to a crash.
    return ResponseHeaders(app, settings)


def _database(request: Request) -> Database:
    opened: Database = request.app.state.database
    return opened


def _validate(sent: Any) -> tuple[str, str]:
    """Return author and message.

    Raises:
        InvalidEntryError: One is missing, empty, too long or not text.
    """
    values = []
    for name, limit in LIMITS.items():
        value = sent.get(name) if isinstance(sent, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise InvalidEntryError(f"{name}: is missing")
        if len(value) > limit or not _is_storable(value):
            raise InvalidEntryError(f"{name}: at most {limit} characters of text")
        values.append(value.strip())
    return values[0], values[1]


def _is_storable(text: str) -> bool:
    """Return whether PostgreSQL takes it: no zero byte, no half of a surrogate pair."""
    return "\x00" not in text and text == text.encode(errors="ignore").decode()


def _as_json(entry: Entry) -> dict[str, Any]:
    return {**entry, "created_at": entry["created_at"].isoformat()}
