"""The real page over the fake engine, as a process of its own: ``fake_server.py PORT SLOTS DELAY [MOOD]``.

It prints who asked and whose reply began, in order. MOOD "broken": saying a reply again raises an error;
"empty": there is no model.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main(port: str, slots: str, delay: str, mood: str = "") -> None:
    """Serve until a signal comes."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/chat")]
    from fake_engine import FakeEngine  # type: ignore[import-not-found]
    from streamlit.web import cli

    from huanhuan.chat import select
    from huanhuan.chat.desk import Desk
    from huanhuan.chat.model_folder import NoModel
    from huanhuan.chat.page.state import PageState

    ask, lock = Desk.ask, threading.Lock()

    def note(line: str) -> None:
        # In one piece: other threads write too.
        os.write(1, f"{line}\n".encode())

    def noted(self: Desk, visitor: str, messages: Any, sampling: Any) -> Any:
        # One after the other, so that the order in the log is that of the queue.
        with lock:
            reply = ask(self, visitor, messages, sampling)
            note(f"asked {messages[-1]['content']}")
            return reply

    class Noting(FakeEngine):
        def _write(self, reply: Any, messages: Any, sampling: Any) -> Any:
            note(f"began {messages[-1]['content']}")
            return super()._write(reply, messages, sampling)

    def fail(self: PageState, desk: Desk) -> None:
        raise RuntimeError("secret detail of a callback")

    Desk.ask = noted

    def build(*_: Any, **__: Any) -> Noting:
        if mood == "empty":
            raise NoModel
        return Noting(slots=int(slots), delay=float(delay))

    select.build = build
    if mood == "broken":
        PageState.again = fail
    sys.argv = ["streamlit", "run", str(ROOT / "app.py"), "--server.port", port, "--server.address", "127.0.0.1"]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
