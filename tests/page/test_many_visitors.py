"""Many visitors of the real page, over its own protocol: nothing lost, nothing crossed, nothing left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from visitor import Visitor, free_port, health, served  # type: ignore[import-not-found]

SERVER = str(Path(__file__).with_name("fake_server.py"))
SLOTS = 3


def start(tmp_path: Path, delay: str, *arguments: str, **environ: str) -> Any:
    port = free_port()
    return port, served([SERVER, str(port), str(SLOTS), delay, *arguments], port, tmp_path / "server.log", **environ)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[int]:
    port, server = start(tmp_path, "0.02")
    with server:
        yield port


def idle(port: int, seconds: float = 30) -> bool:
    """Whether every slot and the queue become free."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = health(port)
        if state.get("running") == state.get("waiting") == 0:
            return True
        time.sleep(0.1)
    return False


def test_twenty_sessions_at_once(slow: int, tmp_path: Path) -> None:
    wrong: list[str] = []
    stopped: list[str] = []
    most = [0]

    def visit(number: int) -> None:
        try:
            visitor = Visitor(slow)
            for turn in range(3):
                text = f"访客{number}说第{turn}句话"
                visitor.send(text)
                if number % 4 == turn == 1 and visitor.stop():
                    stopped.append(text)
                    visitor.until_idle()
                    continue
                visitor.until_idle()
                if text not in visitor.bubbles[-2] or f"回「{text}」" not in visitor.bubbles[-1]:
                    wrong.append(f"{text}: {visitor.bubbles[-2:]}")
            visitor.close()
        except Exception as error:
            wrong.append(f"{number}: {error!r}")

    def watch() -> None:
        while any(each.is_alive() for each in visits):
            most[0] = max(most[0], health(slow).get("running", 0))
            time.sleep(0.05)

    visits = [threading.Thread(target=visit, args=(number,)) for number in range(20)]
    for each in visits:
        each.start()
    watch()
    assert wrong == []
    assert most[0] == SLOTS
    assert stopped, "nobody was quick enough to stop a reply"
    assert idle(slow)
    check_order(tmp_path / "server.log", 60)


def check_order(log: Path, asked: int) -> None:
    """Replies began in the order in which they were asked for.

    Those that begin at the same moment, as many as there are slots, may be written down in any order.
    """
    lines = [line.partition(" ") for line in log.read_text("utf-8", "replace").splitlines()]
    began = [text for word, _, text in lines if word == "began"]
    queue = [text for word, _, text in lines if word == "asked" and text in began]
    assert len([1 for word, *_ in lines if word == "asked"]) == asked and sorted(began) == sorted(queue)
    for place, text in enumerate(queue):
        assert abs(began.index(text) - place) < SLOTS, f"{text}: asked as number {place}, began {began.index(text)}"


def test_a_window_that_is_closed_frees_its_slot(tmp_path: Path) -> None:
    port, server = start(tmp_path, "0.5", HUANHUAN_UNREAD="3")
    with server:
        visitors = [Visitor(port) for _ in range(SLOTS)]
        for each in visitors:
            each.send("很长的一句话" * 20)
            each.read_until(lambda each=each: each.has_button("stop"))
        assert health(port)["running"] == SLOTS
        for each in visitors:
            each.close()
        # The replies would take more than a minute; the desk gives them up three seconds after the last look.
        assert idle(port, 20)


def test_a_page_that_is_loaded_again_goes_on(slow: int) -> None:
    cookie = "huanhuan_visitor=" + "ab" * 16
    first = Visitor(slow, cookie=cookie)
    first.send("从前有座山")
    first.read_until(lambda: bool(first.query) and first.has_button("stop"))
    link = first.query
    first.close()
    again = Visitor(slow, query=link, cookie=cookie)
    assert again.bubbles[1:] == ["从前有座山", "回「从前有座山」第1句"] and again.query == link
    other = Visitor(slow, query=link)
    assert len(other.bubbles) == 1
    bare = Visitor(slow, cookie=cookie)
    assert len(bare.bubbles) == 1, "the first window is still open"
    for each in (again, bare):
        each.close()
    deadline = time.monotonic() + 10
    while len(Visitor(slow, cookie=cookie).bubbles) < 3:
        assert time.monotonic() < deadline, "the page was not found again"
    other.close()


def test_an_error_in_a_callback_is_one_sentence(tmp_path: Path) -> None:
    port, server = start(tmp_path, "0", "broken")
    with server:
        visitor = Visitor(port)
        visitor.send("甲")
        visitor.read_until(lambda: visitor.has_button("again-"))
        visitor.until_idle()
        visitor.click("again-")
        visitor.until_idle()
        assert len(visitor.errors) == 1 and "页面出错了" in visitor.errors[0] and "secret" not in visitor.errors[0]
        log = (tmp_path / "server.log").read_text("utf-8", "replace")
        assert "secret detail" in log and visitor.errors[0].partition("[")[2][:8] in log


def run(port: int, count: int) -> None:
    for number in range(count):
        visitor = Visitor(port)
        text = f"第{number}场"
        visitor.send(text)
        visitor.read_until(lambda visitor=visitor, text=text: f"回「{text}」第1句" in visitor.bubbles)
        visitor.close()


def measure(process: psutil.Process) -> tuple[int, int, float]:
    """Threads, open files and sockets, resident MiB."""
    return process.num_threads(), process.num_fds(), round(process.memory_info().rss / 2**20, 1)


# Streamlit keeps a closed session for two minutes, the last 128 of them, each with an event loop: three files.
KEPT = 128
FILES_EACH = 3
# Enough to fill and turn over what Streamlit keeps; HUANHUAN_CONVERSATIONS=500 for the long version.
CONVERSATIONS = int(os.environ.get("HUANHUAN_CONVERSATIONS", "60"))


@pytest.mark.parametrize(("warm", "count"), [(5, 12), pytest.param(KEPT + 12, CONVERSATIONS, marks=pytest.mark.slow)])
def test_conversations_in_sequence_leave_nothing_behind(tmp_path: Path, warm: int, count: int) -> None:
    port, server = start(tmp_path, "0")
    with server as process:
        watched = psutil.Process(process.pid)
        run(port, warm)
        assert idle(port)
        time.sleep(1)
        before = measure(watched)
        run(port, count)
        assert idle(port)
        time.sleep(1)
        after = measure(watched)
        print(f"{count} conversations: threads, files, MiB {before} -> {after}")
        assert after[0] <= before[0] + 1
        assert after[1] <= before[1] + FILES_EACH * max(min(count, KEPT - warm), 0) + 3
        # The page is kept for a reload, 256 of them at most: some kilobytes each.
        assert after[2] - before[2] <= 4 + count * 0.01


def test_a_shutdown_is_clean_in_the_middle_of_a_reply(tmp_path: Path) -> None:
    port, server = start(tmp_path, "0.05")
    with server as process:
        visitor = Visitor(port)
        visitor.send("长" * 200)
        visitor.read_until(lambda: visitor.has_button("stop"))
        started = time.monotonic()
        process.terminate()
        process.wait(15)
        assert time.monotonic() - started < 10
    log = (tmp_path / "server.log").read_text("utf-8", "replace")
    assert "engine closed" in log and "Traceback" not in log
