"""What somebody did within the last hour."""

from __future__ import annotations

import time

import pytest

from huanhuan.chat.hourly import HOUR, Hourly


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_minutes_until_the_oldest_is_an_hour_ago(clock: Clock) -> None:
    hourly = Hourly()
    assert hourly.minutes_left("a", 2) == 0
    hourly.count("a")
    clock.now += 600
    hourly.count("a")
    assert hourly.minutes_left("a", 3) == 0
    assert hourly.minutes_left("a", 2) == 50
    assert hourly.minutes_left("a", 1) == 60, "the newest alone counts where one an hour is allowed"
    assert hourly.minutes_left("b", 1) == 0
    clock.now += HOUR - 600
    assert hourly.minutes_left("a", 2) == 0
    assert hourly.minutes_left("a", 1) == 10


def test_a_quiet_name_is_forgotten_and_an_old_time_of_a_busy_one(clock: Clock) -> None:
    hourly = Hourly()
    hourly.count("quiet")
    hourly.count("busy")
    clock.now += HOUR - 1
    hourly.count("busy")
    assert set(hourly) == {"quiet", "busy"}
    clock.now += 1
    hourly.count("busy")
    assert set(hourly) == {"busy"}
    assert hourly.minutes_left("busy", 3) == 0, "the first is more than an hour ago"
    assert hourly.minutes_left("busy", 2) > 0
