"""A visitor of the real page without a browser: speaks Streamlit's own protocol over its WebSocket."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect
from websockets.typing import Subprotocol


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def health(port: int) -> dict[str, Any]:
    """What the page's health probe says; empty while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)
    except OSError:
        return {}


@contextmanager
def served(
    command: list[str], port: int, log: Path, *, state: str = "ready", **environ: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The page's server once it is in ``state``; ended with SIGTERM as a platform does it."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environ}
        )
        try:
            end = time.monotonic() + 150
            while health(port).get("state") != state:
                assert process.poll() is None and time.monotonic() < end, log.read_text("utf-8", "replace")
                time.sleep(0.1)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Visitor:
    """One session. ``bubbles`` holds the text of every message on the page, ``errors`` that of every red box.

    ``query`` is what stands behind the question mark of the page's address, as the server sets it too;
    ``cookie`` is what the browser sends.
    """

    def __init__(self, port: int, query: str = "", cookie: str = "") -> None:
        self.query = query
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(
            connect(
                f"ws://127.0.0.1:{port}/_stcore/stream",
                subprotocols=[Subprotocol("streamlit")],
                additional_headers={"Cookie": cookie} if cookie else {},
                max_size=None,
                max_queue=None,
                close_timeout=0.05,
            )
        )
        self._elements: dict[tuple[int, ...], Any] = {}
        self._rerun()
        self.until_idle()

    def _rerun(self, widget: str = "", **value: Any) -> None:
        message = BackMsg()
        message.rerun_script.query_string = self.query
        if widget:
            state = message.rerun_script.widget_states.widgets.add(id=widget)
            for name, content in value.items():
                if name == "chat_input_value":
                    state.chat_input_value.data = content
                else:
                    setattr(state, name, content)
        self._socket.send(message.SerializeToString())

    def _read(self, timeout: float) -> str:
        """Take in one message; its kind."""
        message = ForwardMsg()
        message.ParseFromString(self._socket.recv(timeout=timeout))  # type: ignore[arg-type]
        kind = message.WhichOneof("type") or ""
        if kind == "delta":
            path = tuple(message.metadata.delta_path)
            # A new element takes the place of whatever stood there and below it.
            self._elements = {key: each for key, each in self._elements.items() if key[: len(path)] != path}
            self._elements[path] = message.delta
        elif kind == "page_info_changed":
            self.query = message.page_info_changed.query_string
        elif kind == "script_finished" and message.script_finished == message.FINISHED_EARLY_FOR_RERUN:
            return "interrupted"
        return kind

    def until_idle(self, timeout: float = 60) -> None:
        """Read until the script has run to its end and no other run follows."""
        end = time.monotonic() + timeout
        finished = False
        while True:
            try:
                kind = self._read(0.25 if finished else max(end - time.monotonic(), 0.01))
            except TimeoutError:
                if finished:
                    return
                raise
            finished = kind == "script_finished" or (finished and kind != "new_session")

    def read_until(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        """Read until ``condition`` comes true, in the middle of a run too."""
        end = time.monotonic() + timeout
        while not condition():
            self._read(max(end - time.monotonic(), 0.01))

    def send(self, text: str) -> None:
        """Type ``text`` and press enter."""
        widget = next(
            each.new_element.chat_input.id
            for each in self._elements.values()
            if each.new_element.WhichOneof("type") == "chat_input"
        )
        self._rerun(widget, chat_input_value=text)

    def click(self, key: str) -> None:
        """Press the button whose key begins with ``key``."""
        self._rerun(self._buttons(key)[0], trigger_value=True)

    def has_button(self, key: str) -> bool:
        """Whether such a button is on the page."""
        return bool(self._buttons(key))

    def _buttons(self, key: str) -> list[str]:
        return [
            each.new_element.button.id
            for each in self._elements.values()
            if each.new_element.WhichOneof("type") == "button" and f"-{key}" in each.new_element.button.id
        ]

    def stop(self) -> bool:
        """Press Stop as soon as it is there; False if the reply has ended by itself before."""
        while not self.has_button("stop"):
            if self._read(60) == "script_finished" and self.has_button("again-"):
                return False
        self.click("stop")
        return True

    @property
    def errors(self) -> list[str]:
        """The text of every red box; a traceback counts as one."""
        return [
            each.new_element.alert.body if kind == "alert" else each.new_element.exception.message
            for _, each in sorted(self._elements.items())
            if (kind := each.new_element.WhichOneof("type")) == "exception"
            or (kind == "alert" and each.new_element.alert.format == each.new_element.alert.ERROR)
        ]

    @property
    def bubbles(self) -> list[str]:
        """The text of every bubble from top to bottom."""
        chat = {
            path
            for path, each in self._elements.items()
            if each.WhichOneof("type") == "add_block" and each.add_block.WhichOneof("type") == "chat_message"
        }
        return [
            re.sub(r"\\(.)", r"\1", each.new_element.markdown.body)
            for path, each in sorted(self._elements.items())
            if path[:-1] in chat
            and each.new_element.WhichOneof("type") == "markdown"
            and each.new_element.markdown.element_type != 2
        ]

    def close(self) -> None:
        """Close the window."""
        self._stack.close()
