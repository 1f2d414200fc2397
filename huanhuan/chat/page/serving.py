"""What surrounds the page's script in the server: the health probe, start and end, errors nobody caught."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from huanhuan.chat.desk import Desk
from huanhuan.chat.engine import EngineError
from huanhuan.chat.page.sessions import service
from huanhuan.chat.page.texts import TEXTS, sentence
from huanhuan.chat.page.visitors import VisitorCookie

SCRIPT = str(Path(__file__).with_name("script.py"))
# Seconds that one look at the engine serves every probe.
FRESH = 3.0


class Probe:
    """Asks an engine whether it is well, at most every few seconds and once at a time, whoever wants to know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[Desk, float, bool] | None = None

    def healthy(self, desk: Desk) -> bool:
        """What the engine said last; asked anew if that is too long ago and nobody else is asking."""
        known = self._known if self._known and self._known[0] is desk else None
        if known and time.monotonic() - known[1] < FRESH:
            return known[2]
        # An engine that hangs is waited for by one thread, not by one a probe.
        if self._lock.acquire(timeout=0 if known else FRESH):
            try:
                self._known = (desk, time.monotonic(), desk.healthy())
            finally:
                self._lock.release()
        elif known:
            return known[2]
        return bool(self._known and self._known[2])


@st.cache_resource(show_spinner=False)
def probe() -> Probe:
    """The probe of this process."""
    return Probe()


def health() -> tuple[int, dict[str, Any]]:
    """An HTTP status and what stands behind it: 200 while starting or well, 503 if nobody can be answered.

    >>> health()  # doctest: +SKIP
    (200, {'state': 'ready', 'engine': 'LMDeploy TurboMind', 'model': 'huanhuan', 'running': 1, 'waiting': 0, 'lost': 0})
    """
    started = service()
    desk = started.desk
    if desk is None:
        return (200 if started.state == "loading" else 503), {"state": started.state}
    well = probe().healthy(desk)
    about = {"engine": desk.engine.label, "model": desk.engine.model}
    load = {"running": desk.running, "waiting": desk.waiting, "lost": desk.lost}
    return (200 if well else 503), {"state": "ready" if well else "ill", **about, **load}


async def _answer(request: Request) -> JSONResponse:
    # The engine is asked in a thread: one that hangs must not hang the pages.
    status, about = await asyncio.to_thread(health)
    return JSONResponse(about, status_code=status)


def routes() -> list[BaseRoute]:
    """``/healthz`` beside the page; ``/_stcore/health`` only says that the server runs."""
    return [Route("/healthz", _answer)]


def middleware() -> list[Middleware]:
    """The visitor's cookie."""
    return [Middleware(VisitorCookie)]


@asynccontextmanager
async def lifespan(app: object) -> AsyncIterator[None]:
    """Begin to load the model with the server, not with the first visitor; stop every reply at its end."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("huanhuan").setLevel(logging.INFO)
    started = await asyncio.to_thread(service)
    yield
    await asyncio.to_thread(started.close)


def on_script_error(error: Exception) -> bool:
    """Log an error of a callback and show one sentence instead of a traceback."""
    st.error(sentence(EngineError(*TEXTS["unexpected"], error)))
    return True
