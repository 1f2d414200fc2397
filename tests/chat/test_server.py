"""Serving to others: what LMDeploy's server is given, and its real proxy over servers that come and go."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from huanhuan.chat import server
from huanhuan.errors import UserError
from huanhuan.template import lmdeploy_fields

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-the-tests-01"


def test_the_server_asks_for_a_key_keeps_cors_closed_and_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lmdeploy.serve.openai.api_server import serve

    monkeypatch.setenv("HUANHUAN_LMDEPLOY_BACKEND", "pytorch")
    monkeypatch.setenv("HUANHUAN_SLOTS", "64")
    given = server.server_arguments(tmp_path, name="huanhuan", host="0.0.0.0", port=23333, key=KEY)
    inspect.signature(serve).bind(**given)
    assert set(given) <= set(inspect.signature(serve).parameters), "LMDeploy swallows unknown names silently"
    assert given["api_keys"] == [KEY] and given["allow_origins"] == []
    assert given["backend_config"].enable_metrics and given["backend_config"].max_batch_size == 64
    template = given["chat_template_config"]
    assert template.stop_words == ["<|im_end|>"] and template.system == lmdeploy_fields()["system"]


@pytest.mark.parametrize("host", ["0.0.0.0", "8.8.8.8", "::", "example"])
def test_no_key_means_a_private_address(host: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--host"):
        server.server_arguments(tmp_path, name="huanhuan", host=host, port=1, key=None)
    for private in ("127.0.0.1", "localhost", "10.1.2.3", "192.168.0.9"):
        server.check_private(private)


def test_a_missing_or_short_key_is_refused() -> None:
    assert server.api_key({"HUANHUAN_API_KEY": KEY}) == KEY
    for key in ("", "short"):
        with pytest.raises(UserError, match="HUANHUAN_API_KEY"):
            server.api_key({"HUANHUAN_API_KEY": key})


class Node(ThreadingHTTPServer):
    """A server behind the proxy, which counts what it is asked."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.asked = 0
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Node

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, content: bytes, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": "huanhuan", "object": "model"}]}
        self._send(b"" if self.path == "/health" else json.dumps(models).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        events = b""
        for delta, reason in (({"role": "assistant", "content": "臣妾在"}, None), ({"content": ""}, "stop")):
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "huanhuan"}
            chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": reason}]  # type: ignore[assignment]
            events += f"data: {json.dumps(chunk)}\n\n".encode()
        self._send(events + b"data: [DONE]\n\n", "text/event-stream")


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    running = [Node(), Node()]
    yield running
    for each in running:
        each.end()


@pytest.fixture
def proxy(nodes: list[Node], tmp_path: Path) -> Iterator[str]:
    """The URL of LMDeploy's own proxy, started by our tool."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        port = probe.server_port
    command = [sys.executable, str(ROOT / "tools/serve.py"), "proxy", "--host", "127.0.0.1", "--port", str(port)]
    environ = {**os.environ, "HUANHUAN_API_KEY": KEY}
    with (tmp_path / "proxy.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *(node.url for node in nodes)], stdout=log, stderr=subprocess.STDOUT, env=environ, cwd=tmp_path
        )
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait(20)


def asked(url: str, key: str | None = KEY) -> tuple[int, dict[str, Any], dict[str, str]]:
    headers = {"Origin": "http://elsewhere"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, {}, {}


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.2)


def test_the_proxy_spreads_the_load_asks_for_the_key_and_follows_its_servers(proxy: str, nodes: list[Node]) -> None:
    from huanhuan.chat.openai_engine import OpenAIEngine

    def known() -> int:
        return len(asked(f"{proxy}/nodes/status")[1])

    until(lambda: known() == 2)
    assert asked(f"{proxy}/v1/models", None)[0] == 401
    assert not [name for name in asked(f"{proxy}/v1/models")[2] if name.lower().startswith("access-control")]
    engine = OpenAIEngine(f"{proxy}/v1", KEY)
    try:
        for _ in range(12):
            assert engine.reply([{"role": "user", "content": "你好"}]).result() == "臣妾在"
        assert nodes[0].asked + nodes[1].asked == 12 and min(node.asked for node in nodes) > 0
        port = nodes[1].server_port
        nodes[1].end()
        until(lambda: known() == 1)
        assert engine.reply([{"role": "user", "content": "你好"}]).result() == "臣妾在"
        nodes[1] = Node(port)
        until(lambda: known() == 2)
    finally:
        engine.close()


def test_the_load_test_measures_a_server(nodes: list[Node]) -> None:
    command = [sys.executable, str(ROOT / "bench/load.py"), f"{nodes[0].url}/v1", "--users", "2", "--each", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| 2 | ") and done.stdout.rstrip().endswith("0 / 6 |")
    assert nodes[0].asked == 7
    gone = subprocess.run(
        [*command[:2], "http://127.0.0.1:9/v1"], capture_output=True, text=True, timeout=100, check=False
    )
    assert gone.returncode == 1 and "no answer or refused" in gone.stderr and "Traceback" not in gone.stderr
