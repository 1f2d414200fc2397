"""What surrounds the page's script in the server: the health probe, start and end, errors nobody caught."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from huanhuan.chat.engine import EngineError
from huanhuan.chat.page.state import service

SCRIPT = str(Path(__file__).with_name("script.py"))


def health() -> tuple[int, dict[str, Any]]:
    """An HTTP status and what stands behind it: 200 while starting or well, 503 if nobody can be answered.

    >>> health()  # doctest: +SKIP
    (200, {'state': 'ready', 'engine': 'LMDeploy TurboMind', 'model': 'huanhuan', 'running': 1, 'waiting': 0, 'lost': 0})
    """
    started = service()
    desk = started.desk
    if desk is None:
        return (200 if started.state == "loading" else 503), {"state": started.state}
    well = desk.healthy()
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
    wrong = EngineError("页面出错了，请刷新后重试", "the page failed: reload it and try again", error)
    st.error(str(wrong))
    return True
