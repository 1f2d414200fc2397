"""The engine of this process, guarded and behind its desk: started once, whatever the number of visitors."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from huanhuan.chat import select
from huanhuan.chat.desk import Desk, Limits
from huanhuan.chat.engine import Engine, EngineError
from huanhuan.chat.guard import guarded
from huanhuan.errors import UserError

logger = logging.getLogger("huanhuan.chat")

State = Literal["loading", "ready", "failed"]


class Service:
    """Starts the engine and holds it; ``state``, ``doing`` and ``share`` say how far the start has come.

    ``problems`` holds one line each once the start has failed.
    """

    def __init__(self, build: Callable[..., Engine] | None = None) -> None:
        self._build = build or select.build
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.state: State = "loading"
        self.doing = ""
        self.share: float | None = None
        self.problems: list[str] = []
        self.desk: Desk | None = None
        self.started_at = time.monotonic()
        self.start()

    def start(self) -> None:
        """Start, or start again after a failure."""
        with self._lock:
            self.state, self.problems = "loading", []
            self.doing, self.share = "", None
            self.started_at = time.monotonic()
            self._ended.clear()
            threading.Thread(target=self._load, name="engine-start", daemon=True).start()

    def retry(self) -> None:
        """Start again if the start failed; otherwise do nothing."""
        if self.state == "failed":
            self.start()

    def _load(self) -> None:
        try:
            limits = Limits.from_environment()
            engine = guarded(self._build(report=self._report))
            self.desk = Desk(engine, limits)
            self.state = "ready"
            logger.info("%s answers with %s", engine.label, engine.model)
        except UserError as error:
            self._fail(error.problems)
        except Exception as error:
            self._fail(EngineError("引擎启动失败", "the engine could not be started", error).problems)
        finally:
            self._ended.set()

    def _report(self, doing: str, share: float | None) -> None:
        self.doing, self.share = doing, share

    def _fail(self, problems: list[str]) -> None:
        for line in problems:
            logger.error("%s", line)
        self.problems, self.state = problems, "failed"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the start; whether it came within ``timeout`` seconds."""
        return self._ended.wait(timeout)

    def close(self) -> None:
        """Stop every reply and close the engine, if there is one."""
        desk, self.desk = self.desk, None
        if desk:
            desk.close()
            desk.engine.close()
            logger.info("engine closed")
