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
from huanhuan.chat.filters import Filter, NoFilter, chosen_filter
from huanhuan.chat.guard import guard_wanted, guarded
from huanhuan.chat.model_folder import NoModel
from huanhuan.errors import UserError

logger = logging.getLogger("huanhuan.chat")

State = Literal["loading", "ready", "failed"]


class Service:
    """Starts the engine and holds it; ``state``, ``doing`` and ``share`` say how far the start has come.

    Once the start has failed, ``problem`` is one sentence with an id, its details in the log; ``no_model`` says
    that nothing is wrong but that there is no model yet. ``words`` is the filter for every visitor.
    """

    def __init__(self, build: Callable[..., Engine] | None = None) -> None:
        self._build = build or select.build
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._closed = False
        self.state: State = "loading"
        self.doing = ""
        self.share: float | None = None
        self.problem: EngineError | None = None
        self.no_model = False
        self.desk: Desk | None = None
        self.words: Filter = NoFilter()
        self.started_at = time.monotonic()
        self._start()

    def retry(self) -> None:
        """Start again if the start failed; otherwise do nothing. Of several callers only one starts it."""
        with self._lock:
            if self.state == "failed" and not self._closed:
                self._start()

    def _start(self) -> None:
        self.state, self.problem, self.no_model = "loading", None, False
        self.doing, self.share = "", None
        self.started_at = time.monotonic()
        self._ended.clear()
        threading.Thread(target=self._load, name="engine-start", daemon=True).start()

    def prepare(self) -> None:
        """Read what the environment sets for every visitor. Raises: UserError if that is wrong."""
        self.words = chosen_filter()

    def _load(self) -> None:
        try:
            self.prepare()
            limits = Limits.from_environment()
            guard_wanted()
            engine = guarded(self._build(report=self._report))
            with self._lock:
                if not self._closed:
                    self.desk = Desk(engine, limits)
                    self.state = "ready"
            if self._closed:
                engine.close()
            logger.info("%s answers with %s", engine.label, engine.model)
        except NoModel as error:
            logger.error("%s", error)
            self.no_model, self.state = True, "failed"
        except EngineError as error:
            self._fail(error)
        except BaseException as error:
            # A library that calls sys.exit ends this thread only; the page must not wait for it for ever.
            lines = error.problems if isinstance(error, UserError) else []
            for line in lines:
                logger.error("%s", line)
            self._fail(EngineError("启动失败，请联系管理者", "the start failed: ask whoever runs this page", error))
        finally:
            self._ended.set()

    def _fail(self, problem: EngineError) -> None:
        self.problem, self.state = problem, "failed"

    def _report(self, doing: str, share: float | None) -> None:
        self.doing, self.share = doing, share

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the start; whether it came within ``timeout`` seconds."""
        return self._ended.wait(timeout)

    def close(self) -> None:
        """Stop every reply and close the engine, if there is one or as soon as there is."""
        with self._lock:
            self._closed = True
            desk, self.desk = self.desk, None
        if desk:
            desk.close()
            desk.engine.close()
            logger.info("engine closed")
