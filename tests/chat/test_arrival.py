"""A model that comes over the network, from hubs that break off, lie or are not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from huanhuan.chat import model_folder
from huanhuan.chat.arrival import MANIFEST, fetched, hubs, is_id, missing_files, wanted_files
from huanhuan.errors import UserError

ROOT = Path(__file__).parents[2]


def tensors(size: int) -> bytes:
    """A safetensors file with ``size`` bytes of weights."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"w" * size


CONTENT = {
    "config.json": b"{}",
    "model-1.safetensors": tensors(5000),
    "model-2.safetensors": tensors(7000),
    "tokenizer.model": b"t" * 100,
    "old.bin": b"b" * 9000,
    "README.md": b"#",
    "sub/extra.json": b"[]",
}


class FakeHub:
    """A hub in memory; ``breaks`` is after how many files a download breaks off."""

    name = "Fake"

    def __init__(self, content: dict[str, bytes] | None = None, breaks: int | None = None) -> None:
        self.content = CONTENT if content is None else content
        self.breaks = breaks
        self.asked: list[list[str]] = []
        self.sent: list[str] = []

    def files(self, model: str) -> dict[str, int]:
        if not self.content:
            raise ConnectionError("no route")
        return {path: len(content) for path, content in self.content.items()}

    def fetch(self, model: str, folder: Path, files: list[str]) -> None:
        self.asked.append(files)
        for number, path in enumerate(files):
            if number == self.breaks:
                (folder / path).write_bytes(self.content[path][:10])
                raise ConnectionError("broke off")
            target = folder / path
            if not target.exists() or target.stat().st_size != len(self.content[path]):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self.content[path])
                self.sent.append(path)


def quiet(doing: str, share: float | None) -> None:
    pass


def test_only_what_loading_needs_is_fetched_and_only_once(tmp_path: Path) -> None:
    hub = FakeHub()
    folder = fetched("owner/model", [hub], tmp_path, quiet)
    assert folder == tmp_path / "owner--model"
    assert set(hub.sent) == {
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "tokenizer.model",
        "sub/extra.json",
    }
    again = FakeHub({})
    assert fetched("owner/model", [again], tmp_path, quiet) == folder, "a complete model needs no network"
    assert not again.asked


def test_a_broken_download_goes_on_where_it_ended(tmp_path: Path) -> None:
    hub = FakeHub(breaks=2)
    with pytest.raises(UserError, match="broke off: try again"):
        fetched("owner/model", [hub], tmp_path, quiet)
    assert not (tmp_path / "owner--model" / MANIFEST).exists()
    hub.breaks = None
    folder = fetched("owner/model", [hub], tmp_path, quiet)
    assert hub.sent.count("config.json") == 1 and not missing_files(folder, wanted_files(hub.files("")))


def test_a_damaged_file_is_noticed_before_loading(tmp_path: Path) -> None:
    hub = FakeHub()
    folder = fetched("owner/model", [hub], tmp_path, quiet)
    (folder / "model-2.safetensors").write_bytes(b"short")
    fetched("owner/model", [hub], tmp_path, quiet)
    assert hub.sent.count("model-2.safetensors") == 2


def test_a_hub_that_claims_to_be_done_is_not_believed(tmp_path: Path) -> None:
    class Lying(FakeHub):
        def fetch(self, model: str, folder: Path, files: list[str]) -> None:
            super().fetch(model, folder, files[:1])

    with pytest.raises(UserError, match="missing or damaged"):
        fetched("owner/model", [Lying()], tmp_path, quiet)


def test_the_next_place_is_asked_and_then_it_is_one_line(tmp_path: Path) -> None:
    good = FakeHub()
    assert fetched("owner/model", [FakeHub({}), good], tmp_path, quiet) and good.sent
    with pytest.raises(UserError, match="HUANHUAN_MODEL") as caught:
        fetched("owner/other", [FakeHub({}), FakeHub({})], tmp_path, quiet)
    assert len(caught.value.problems) == 1 and not (tmp_path / "owner--other").exists()


def test_a_disk_too_small_is_told_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="HUANHUAN_MODELS"):
        fetched("owner/model", [hub], tmp_path, quiet)
    assert not hub.asked


def test_how_far_it_is_is_reported(tmp_path: Path) -> None:
    import time

    class Slow(FakeHub):
        def fetch(self, model: str, folder: Path, files: list[str]) -> None:
            super().fetch(model, folder, files[:2])
            time.sleep(1.2)
            super().fetch(model, folder, files)

    heard: list[float | None] = []
    fetched("owner/model", [Slow()], tmp_path, lambda doing, share: heard.append(share))
    shares = [share for share in heard if share is not None]
    assert heard[0] is None and shares and all(0 < share <= 1 for share in shares)


def test_names() -> None:
    assert is_id("internlm/internlm2-chat-7b") and is_id("a/b.c-d_e")
    assert not any(map(is_id, ("models/huanhuan", "../a/b", "/a/b", "a", "a/b/c", "~/a", "a/..\\b")))
    assert [hub.name for hub in hubs({})] == ["ModelScope", "Hugging Face"]
    assert [hub.name for hub in hubs({"HUANHUAN_HUB": "HuggingFace"})] == ["Hugging Face"]
    with pytest.raises(UserError, match="HUANHUAN_HUB=git"):
        hubs({"HUANHUAN_HUB": "git"})


class Site(ThreadingHTTPServer):
    """modelscope.cn and huggingface.co as far as their own clients ask them for one model, ``owner/model``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pages)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.sent: list[str] = []
        self.content = CONTENT
        # After how many bytes a file breaks off that is asked for from its beginning, and from where others were asked.
        self.cut: int | None = None
        self.resumed: list[int] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Pages(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        commit = "1" * 40
        if url.path == "/api/v1/models/owner/model/repo/files":
            folder = {"Path": "sub", "Name": "sub", "Size": 0, "Type": "tree"}
            listed = self.server.content.items()
            files = [{"Path": path, "Size": len(content), "Type": "blob"} for path, content in listed]
            self._json({"Code": 200, "Success": True, "Data": {"Files": [folder, *files]}})
        elif url.path == "/api/v1/models/owner/model/repo":
            self._file(urllib.parse.parse_qs(url.query)["FilePath"][0])
        elif url.path in ("/api/models/owner/model", "/api/models/owner/model/revision/main"):
            files = [{"rfilename": path, "size": len(content)} for path, content in self.server.content.items()]
            self._json({"id": "owner/model", "modelId": "owner/model", "sha": commit, "siblings": files})
        elif url.path.startswith(place := f"/owner/model/resolve/{commit}/"):
            self._file(url.path.removeprefix(place), {"X-Repo-Commit": commit})
        else:
            self.send_error(404)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, path: str, headers: dict[str, str] | None = None) -> None:
        content = self.server.content[path]
        sent = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes", **(headers or {})}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if self.command == "GET":
            self.server.sent.append(path)
        if start:
            self.server.resumed.append(start)
            whole = len(content)
            self._send(content[start:], {**sent, "Content-Range": f"bytes {start}-{whole - 1}/{whole}"}, 206)
        else:
            self._send(content, sent, cut=self.server.cut)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.shutdown()
    running.server_close()


FETCH = """
import sys
from pathlib import Path
from huanhuan.chat.arrival import fetched, hubs
print(fetched("owner/model", hubs(), Path(sys.argv[1]), lambda doing, share: None))
"""


def fetch(site: Site, hub: str, home: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the clients read where the hub is when they are imported."""
    environ = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "HUANHUAN_HUB": hub,
        "HF_ENDPOINT": site.url,
        "MODELSCOPE_ENDPOINT": site.url,
        "HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", FETCH, str(home)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("hub", ["modelscope", "huggingface"])
def test_the_official_clients_fetch_a_model_with_a_folder_in_it(site: Site, tmp_path: Path, hub: str) -> None:
    done = fetch(site, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "owner--model"
    assert done.stdout.splitlines()[-1] == str(folder)
    wanted = wanted_files({path: len(content) for path, content in CONTENT.items()})
    assert "sub/extra.json" in wanted and not missing_files(folder, wanted)
    assert all((folder / path).read_bytes() == CONTENT[path] for path in wanted)
    assert sorted(site.sent) == sorted(wanted), "nothing else is fetched"


@pytest.mark.parametrize("hub", ["modelscope", "huggingface"])
def test_the_official_clients_go_on_in_the_middle_of_a_file(site: Site, tmp_path: Path, hub: str) -> None:
    """Hugging Face's client writes ten MiB at a time and gives up at a break, ModelScope's tries again itself."""
    site.content = {**CONTENT, "model-1.safetensors": os.urandom(12 * 2**20)}
    site.cut = 11 * 2**20
    tries = [fetch(site, hub, tmp_path)]
    if hub == "huggingface":
        assert tries[0].returncode == 1 and "it goes on from here" in tries[0].stderr
        tries.append(fetch(site, hub, tmp_path))
    assert tries[-1].returncode == 0, tries[-1].stderr
    file = tmp_path / "owner--model/model-1.safetensors"
    assert file.read_bytes() == site.content["model-1.safetensors"]
    assert site.resumed == [{"modelscope": 11, "huggingface": 10}[hub] * 2**20]
    assert site.sent.count("config.json") == 1


def test_what_is_taken_when_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(model_folder, "hubs", lambda environ: [hub])
    environ = {"HUANHUAN_MODELS": str(tmp_path / "kept")}
    taken = model_folder.model_folder(environ=environ, models=tmp_path, gpu=True)
    assert taken == tmp_path / "kept" / "kmno4zx--huanhuan-chat-internlm2"
    for name in ("huanhuan-demo", "huanhuan"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors", "tokenizer.model"):
            (tmp_path / name / file).write_bytes(tensors(0))
        assert model_folder.model_folder(environ={}, models=tmp_path) == tmp_path / name
    assert model_folder.model_folder("owner/model", environ) == tmp_path / "kept" / "owner--model"
