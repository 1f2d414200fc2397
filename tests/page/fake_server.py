"""The real page over the fake engine, as a process of its own: ``fake_server.py PORT SLOTS DELAY``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(port: str, slots: str, delay: str) -> None:
    """Serve until a signal comes."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/chat")]
    from fake_engine import FakeEngine  # type: ignore[import-not-found]
    from streamlit.web import cli

    from huanhuan.chat import select

    select.build = lambda *_, **__: FakeEngine(slots=int(slots), delay=float(delay))
    sys.argv = ["streamlit", "run", str(ROOT / "app.py"), "--server.port", port, "--server.address", "127.0.0.1"]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
