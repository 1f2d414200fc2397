"""What tests of the page share: a persona, a fake engine in the page's place for one, and a way to run the page."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit import config
from streamlit.testing.v1 import AppTest

# Test folders are no packages; helpers are imported by name.
sys.path.insert(0, str(Path(__file__).parents[1] / "chat"))
sys.path.insert(0, str(Path(__file__).parent))

from driving import opened  # type: ignore[import-not-found]
from fake_engine import FakeEngine  # type: ignore[import-not-found]

from huanhuan.chat import personas as persona_folder
from huanhuan.chat import select

PERSONA = """
name = "阿沅"
aliases = ["沅儿"]
system = "现在你要扮演种花的阿沅"
greeting = "来者是客，请进园子坐。"
starters = ["你是谁？", "今日园中开了什么花？"]
"""


@pytest.fixture(autouse=True, scope="session")
def no_magic() -> None:
    """As in .streamlit/config.toml, wherever the tests are started.

    AppTest parses its script anew in a thread at every run; on CPython 3.11 that fails now and then if another
    thread builds a syntax tree at the same moment, as pytest does for a test module that it imports.
    """
    config.set_option("runner.magicEnabled", False)


@pytest.fixture
def personas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that holds two personas, one under the default key."""
    (tmp_path / "huanhuan").mkdir()
    (tmp_path / "huanhuan/persona.toml").write_text(PERSONA, "utf-8")
    (tmp_path / "axiang").mkdir()
    (tmp_path / "axiang/persona.toml").write_text(PERSONA.replace("阿沅", "阿香"), "utf-8")
    load = persona_folder.load_personas
    monkeypatch.setattr(persona_folder, "load_personas", lambda: load(tmp_path))
    return tmp_path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, personas: Path) -> Iterator[FakeEngine]:
    """The fake engine that the page gets."""
    fake = FakeEngine()
    monkeypatch.setattr(select, "build", lambda *_, **__: fake)
    st.cache_resource.clear()
    yield fake
    st.cache_resource.clear()


@pytest.fixture
def page(engine: FakeEngine) -> AppTest:
    """The page after its first run, the engine ready."""
    return opened()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait for something to come true, at most ten seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, "it did not come true in ten seconds"
            time.sleep(0.01)

    return wait
