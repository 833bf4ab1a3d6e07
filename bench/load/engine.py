"""Starts requests on schedule, whatever became of earlier ones."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

from bench.load.clients import (
    Client,
    Dialler,
    KeptHttp1,
    KeptHttp2,
    NewHttp1,
    NewHttp2,
    tls_context,
)
from bench.load.failure import RequestFailed
from bench.load.http1 import Http1Connection
from bench.load.http2 import Http2Connection
from bench.load.recorder import Recorder
from bench.load.report import Report
from bench.load.settings import LoadSettings

_TICK_S = 0.05
_CLOSING_S = 1.0


class LoadRun:
    """One run against one endpoint.

    Args:
        settings: What to do.
        progress_file: Rewritten several times a second with counts so far.
        has_terminal: Whether to print a line a second on standard error.
    """

    def __init__(
        self,
        settings: LoadSettings,
        *,
        progress_file: Path | None = None,
        has_terminal: bool = False,
    ) -> None:
        self._settings = settings
        self._progress_file = progress_file
        self._has_terminal = has_terminal
        weights = {name: weight for name, weight in settings.mix.items() if weight > 0}
        self._turns = take_turns(weights)
        self._paths = {name: count() for name in weights}
        self._recorder = Recorder(
            tuple(weights),
            has_versions=settings.by_header is not None,
            late_s=settings.late_ms / 1000,
        )
        self._http1 = Dialler(settings, Http1Connection, tls_context(settings, "http/1.1"))
        self._http2 = Dialler(settings, Http2Connection, tls_context(settings, "h2"))
        self._clients: dict[str, Client] = {
            "http1-new": NewHttp1(self._http1, settings),
            "http1-kept": KeptHttp1(self._http1, settings),
            "http2-new": NewHttp2(self._http2, settings),
            "http2-kept": KeptHttp2(self._http2, settings),
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped_by: str | None = None
        self._give_up_at: float | None = None
        self._began = 0.0

    async def run(self) -> Report:
        """Send until a bound, a file or a signal stops it; return what was seen."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._interrupt)
        began_at, cpu_began = time.time(), time.process_time()
        self._began = loop.time()
        watcher = asyncio.create_task(self._watch())
        try:
            await self._send()
            await self._drain()
        finally:
            watcher.cancel()
        self._show_progress()
        report = self._recorder.report(
            rate=self._settings.rate,
            began_at=began_at,
            cpu_seconds=time.process_time() - cpu_began,
            stopped_by=self._stopped_by or "requests",
            connections={name: client.opened for name, client in self._clients.items()},
        )
        await self._close()
        return report

    def _interrupt(self) -> None:
        now = asyncio.get_running_loop().time()
        # A second signal asks for the report at once.
        is_first = self._give_up_at is None
        self._give_up_at = now + self._settings.grace_s if is_first else now
        self._stopped_by = self._stopped_by or "signal"

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        settings = self._settings
        for number in count():
            if settings.requests is not None and number >= settings.requests:
                self._stopped_by = self._stopped_by or "requests"
                return
            due_s = number / settings.rate
            while True:
                now_s = loop.time() - self._began
                if max(now_s, due_s) >= settings.max_seconds:
                    self._stopped_by = self._stopped_by or "seconds"
                if settings.until_file is not None and settings.until_file.exists():
                    self._stopped_by = self._stopped_by or "file"
                # Also when behind schedule: what has arrived meanwhile is read first.
                await asyncio.sleep(min(max(due_s - now_s, 0.0), _TICK_S))
                if self._stopped_by is not None:
                    return
                now_s = loop.time() - self._began
                if now_s >= due_s:
                    break
            self._start(due_s, now_s)

    def _start(self, due_s: float, now_s: float) -> None:
        traffic = next(self._turns)
        path = next(self._paths[traffic]) % len(self._settings.paths)
        self._recorder.started(traffic, due_s=due_s, now_s=now_s)
        task = asyncio.create_task(self._request(traffic, path, due_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(self, traffic: str, path: int, due_s: float) -> None:
        settings, recorder, time_of = (
            self._settings,
            self._recorder,
            asyncio.get_running_loop().time,
        )
        try:
            async with asyncio.timeout(settings.timeout_s):
                response = await self._clients[traffic].fetch(path)
            if not 200 <= response.status < 300:
                detail = f"version {response.version}" if response.version else "complete"
                raise RequestFailed(f"status-{response.status}", detail)
        except RequestFailed as failure:
            kind, detail = failure.kind, failure.detail
        except TimeoutError:
            kind, detail = "timeout", f"no complete response after {settings.timeout_s:g} s"
        except asyncio.CancelledError:
            kind, detail = "unfinished", "outstanding at the end of the run"
        except Exception as error:  # A bug must not look like a request that never was.
            kind, detail = "internal", repr(error)
        else:
            now_s = time_of() - self._began
            recorder.succeeded(traffic, response.version, due_s=due_s, now_s=now_s)
            return
        detail = f"{settings.paths[path]}: {detail}"
        recorder.fell(traffic, kind, detail, now_s=time_of() - self._began)

    async def _drain(self) -> None:
        """Wait for outstanding requests, each of which has a time-out, or until told to give up."""
        time_of = asyncio.get_running_loop().time
        while self._tasks and (self._give_up_at is None or time_of() < self._give_up_at):
            await asyncio.wait(self._tasks, timeout=_TICK_S)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        # Done tasks leave the set in callbacks of their own.
        await asyncio.sleep(0)

    async def _close(self) -> None:
        for connection in (*self._http1.connections, *self._http2.connections):
            connection.close()
        deadline = asyncio.get_running_loop().time() + _CLOSING_S
        while self._http1.connections or self._http2.connections:
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(0.01)

    async def _watch(self) -> None:
        for tick in count():
            if tick % 2 == 0:
                self._show_progress()
            if self._has_terminal and tick % 20 == 0:
                print(self._line(), file=sys.stderr, flush=True)
            await asyncio.sleep(_TICK_S)

    def _line(self) -> str:
        seen = self._recorder
        outstanding = seen.requests - seen.ok - seen.failed
        elapsed_s = asyncio.get_running_loop().time() - self._began
        return (
            f"{elapsed_s:7.1f}s {seen.requests:>8} sent {seen.ok:>8} ok "
            f"{seen.failed:>6} failed {outstanding:>5} outstanding"
        )

    def _show_progress(self) -> None:
        if self._progress_file is None:
            return
        seen = self._recorder
        document = {
            "requests": seen.requests,
            "ok": seen.ok,
            "failed": seen.failed,
            "seconds": round(asyncio.get_running_loop().time() - self._began, 3),
            "versions": {name: version.count for name, version in seen.versions.items()},
        }
        write_whole(self._progress_file, json.dumps(document))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of the old text or all of the new."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def take_turns(weights: Mapping[str, float]) -> Iterator[str]:
    """Yield names for ever, each as often as its weight says and spread out evenly."""
    total = sum(weights.values())
    credit = dict.fromkeys(weights, 0.0)
    while True:
        for name, weight in weights.items():
            credit[name] += weight
        chosen = max(credit, key=lambda name: credit[name])
        credit[chosen] -= total
        yield chosen
