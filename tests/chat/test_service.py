"""The start of the engine: once, seen from outside, and never for ever."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine  # type: ignore[import-not-found]

from huanhuan.chat.engine import EngineError
from huanhuan.chat.filters import WordFilter
from huanhuan.chat.model_folder import NoModel
from huanhuan.chat.service import Service
from huanhuan.errors import UserError


def failing(error: BaseException) -> Callable[..., Any]:
    def build(**_: Any) -> FakeEngine:
        raise error

    return build


def test_it_starts_by_itself_and_says_how_far_it_is() -> None:
    seen, go_on = threading.Event(), threading.Event()

    def build(report: Callable[[str, float | None], None]) -> FakeEngine:
        report("下载", 0.5)
        seen.set()
        go_on.wait(5)
        return FakeEngine()

    service = Service(build)
    assert seen.wait(5) and (service.state, service.doing, service.share) == ("loading", "下载", 0.5)
    go_on.set()
    assert service.wait(5) and service.state == "ready" and service.desk
    service.close()


@pytest.mark.parametrize(
    "error", [UserError("/secret/path: 坏了 / broken"), RuntimeError("/secret/path"), SystemExit(2)]
)
def test_whatever_goes_wrong_is_one_sentence_its_details_in_the_log(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(failing(error))
    assert service.wait(5) and service.state == "failed" and service.problem and not service.no_model
    assert "secret" not in str(service.problem) and service.problem.id in caplog.text
    if not isinstance(error, SystemExit):
        assert "/secret/path" in caplog.text


def test_an_engine_s_own_sentence_is_kept() -> None:
    service = Service(failing(EngineError("显存不够", "not enough memory")))
    assert service.wait(5) and service.problem and service.problem.en == "not enough memory"


def test_no_model_is_no_error(tmp_path: Path) -> None:
    service = Service(failing(NoModel(tmp_path)))
    assert service.wait(5) and service.state == "failed" and service.no_model and service.problem is None


def test_of_many_who_try_again_one_starts_it() -> None:
    builds: list[int] = []
    gate = threading.Event()

    def build(**_: Any) -> FakeEngine:
        builds.append(1)
        if len(builds) == 1:
            raise RuntimeError("not yet")
        gate.wait(5)
        return FakeEngine()

    service = Service(build)
    service.wait(5)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        ready = threading.Barrier(8)
        threads = [threading.Thread(target=lambda: (ready.wait(5), service.retry())) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(5)
    finally:
        sys.setswitchinterval(switch)
    gate.set()
    assert service.wait(5) and service.state == "ready" and len(builds) == 2
    service.retry()
    assert len(builds) == 2, "there is nothing to try again"
    service.close()


def test_the_word_list_is_read_once_and_a_wrong_one_fails_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUANHUAN_WORDS", str(tmp_path / "none.txt"))
    built: list[int] = []
    service = Service(lambda **_: built.append(1) or FakeEngine())
    assert service.wait(5) and service.state == "failed" and service.problem and not built
    assert str(tmp_path) not in str(service.problem) and str(tmp_path) in caplog.text
    (tmp_path / "none.txt").write_text("毒药", "utf-8")
    service.retry()
    assert service.wait(5) and service.state == "ready" and isinstance(service.words, WordFilter)
    service.close()


def test_an_engine_that_is_ready_after_the_end_is_closed() -> None:
    go_on, closed = threading.Event(), threading.Event()

    class Late(FakeEngine):
        def close(self) -> None:
            closed.set()

    def build(**_: Any) -> FakeEngine:
        go_on.wait(5)
        return Late()

    service = Service(build)
    service.close()
    go_on.set()
    assert service.wait(5) and closed.wait(5) and service.desk is None
