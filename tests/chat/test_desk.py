"""The desk: first come first served, one reply a visitor, and every slot comes back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest
from fake_engine import FakeEngine  # type: ignore[import-not-found]

from huanhuan.chat import hourly
from huanhuan.chat.desk import Desk, Limits, Refused
from huanhuan.chat.engine import EngineError, Finish, Reply, Sampling, Timeouts
from huanhuan.chat.guard import GuardedEngine, guarded
from huanhuan.errors import UserError
from huanhuan.template import Message

SAMPLING = Sampling(max_new_tokens=400)


def said(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def eventually(condition: object) -> None:
    end = time.monotonic() + 5
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come true in five seconds"
        time.sleep(0.005)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(delay=0.002)


@pytest.fixture
def desk(engine: FakeEngine) -> Iterator[Desk]:
    built = Desk(engine, Limits(queue=8))
    yield built
    built.close()


def test_the_queue_is_first_come_first_served_and_says_how_many_are_before(engine: FakeEngine, desk: Desk) -> None:
    engine.delay = 0.01
    replies = [desk.ask(f"v{i}", said(f"话{i}"), SAMPLING) for i in range(5)]
    assert [reply.ahead for reply in replies] == [None, 0, 1, 2, 3]
    assert [reply.result() for reply in replies] == [f"回「话{i}」第1句" for i in range(5)]
    assert [messages[-1]["content"] for messages, _ in engine.seen] == [f"话{i}" for i in range(5)]
    assert engine.most_busy == 1


def test_as_many_run_as_there_are_slots(engine: FakeEngine, desk: Desk) -> None:
    engine.slots = 3
    for reply in [desk.ask(f"v{i}", said("话"), SAMPLING) for i in range(8)]:
        reply.result()
    assert engine.most_busy == 3


def test_a_full_queue_refuses_and_takes_again_later(engine: FakeEngine, desk: Desk) -> None:
    engine.fault = "hang"
    replies = [desk.ask(f"v{i}", said("话"), SAMPLING) for i in range(9)]
    with pytest.raises(Refused, match="too many people"):
        desk.ask("late", said("话"), SAMPLING)
    replies[4].stop()
    assert replies[4].wait(1) and replies[4].finish == "stopped"
    engine.fault = None
    # The keeper of the desk lives with a visitor who has asked nothing yet.
    desk._look()
    taken = desk.ask("late", said("话"), SAMPLING)
    replies[0].stop()
    assert taken.result()


def test_a_new_message_of_a_visitor_stops_their_old_one(engine: FakeEngine, desk: Desk) -> None:
    engine.delay = 0.05
    first = desk.ask("v", said("甲"), SAMPLING)
    second = desk.ask("v", said("乙"), SAMPLING)
    assert second.result() == "回「乙」第1句"
    assert first.finish == "stopped"


def test_the_hour_is_counted_for_each_visitor(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(engine, Limits(hourly=2))
    try:
        for _ in range(2):
            desk.ask("v", said("话"), SAMPLING).result()
        with pytest.raises(Refused, match="hourly limit: come back in 60 minutes"):
            desk.ask("v", said("话"), SAMPLING)
        assert desk.ask("w", said("话"), SAMPLING).result()
        monkeypatch.setattr(hourly, "HOUR", 0.0)
        assert desk.ask("v", said("话"), SAMPLING).result()
    finally:
        desk.close()


def test_a_reply_that_nobody_reads_is_stopped(engine: FakeEngine) -> None:
    engine.fault = "hang"
    desk = Desk(engine, Limits(unread=0.2))
    try:
        gone = [desk.ask(f"v{i}", said("话"), SAMPLING) for i in range(2)]
        eventually(lambda: all(reply.done for reply in gone))
        assert desk.running == desk.waiting == 0 == engine.busy
    finally:
        desk.close()


def test_an_overdue_reply_frees_its_slot_even_unread(engine: FakeEngine, desk: Desk) -> None:
    engine.fault, engine.timeouts = "hang", Timeouts(0.1, 0.1, 1)
    reply = desk.ask("v", said("话"), SAMPLING)
    eventually(lambda: reply.done)
    assert isinstance(reply.error, EngineError)
    eventually(lambda: desk.running == 0)
    engine.fault = None
    assert desk.ask("v", said("话"), SAMPLING).result()


@pytest.mark.parametrize("fault", ["raise", "mid", "refuse"])
def test_a_failing_engine_gives_its_slot_back(engine: FakeEngine, desk: Desk, fault: str) -> None:
    engine.fault = fault
    for _ in range(3):
        with pytest.raises(EngineError):
            desk.ask("v", said("话语"), SAMPLING).result()
    engine.fault = None
    assert desk.ask("v", said("话"), SAMPLING).result()


def test_a_message_too_long_fails_alone(engine: FakeEngine, desk: Desk) -> None:
    with pytest.raises(EngineError, match="too long"):
        desk.ask("v", said("话" * 5000), SAMPLING).result()
    assert desk.ask("v", said("话"), SAMPLING).result()


class Stuck(FakeEngine):
    """Takes every reply and does nothing with it, not even stop, until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts = Timeouts(0.3, 0.3, 5)
        self.go_on = threading.Event()

    def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        self.go_on.wait(30)
        return super()._write(reply, messages, sampling)


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    engine = Stuck()
    yield engine
    engine.go_on.set()


@pytest.mark.parametrize("guard", ["on", "off"])
def test_a_slot_that_never_comes_back_makes_the_desk_ill_and_nobody_waits_for_it(stuck: Stuck, guard: str) -> None:
    desk = Desk(guarded(stuck, {"HUANHUAN_GUARD": guard}), Limits(lost=0.5))
    try:
        assert desk.healthy()
        first, second = (desk.ask(visitor, said("话"), SAMPLING) for visitor in "ab")
        with pytest.raises(EngineError, match="did not answer in time"):
            first.result()
        assert desk.running == 1, "a slot that the engine holds is not given away"
        with pytest.raises(Refused, match="does not respond"):
            second.result()
        assert not desk.healthy() and desk.lost == 1 and desk.waiting == 0 and not stuck.seen
        with pytest.raises(Refused, match="does not respond"):
            desk.ask("c", said("话"), SAMPLING)
        stuck.go_on.set()
        eventually(desk.healthy)
        assert desk.ask("d", said("话"), SAMPLING).result() == "回「话」第1句"
    finally:
        stuck.go_on.set()
        desk.close()


def test_one_slot_lost_leaves_the_others(stuck: Stuck) -> None:
    desk = Desk(guarded(stuck, {}), Limits(lost=0.1))
    stuck.slots = 2
    try:
        desk.ask("a", said("话"), SAMPLING).stop()
        eventually(lambda: desk.lost == 1)
        assert desk.healthy()
        stuck.go_on.set()
        eventually(lambda: desk.lost == 0)
        assert desk.ask("b", said("话"), SAMPLING).result()
    finally:
        desk.close()


def test_waiting_in_the_queue_is_not_counted(engine: FakeEngine, desk: Desk) -> None:
    engine.timeouts, engine.delay = Timeouts(0.3, 0.3, 0.9), 0.05
    replies = [desk.ask(f"v{i}", said("话"), SAMPLING) for i in range(4)]
    assert [reply.result() for reply in replies] == ["回「话」第1句"] * 4
    waited = [(reply.admitted_at or 0) - reply.asked_at for reply in replies]
    assert waited[0] < 0.1 and waited[3] > 0.9 and waited == sorted(waited)


def test_closing_stops_everybody(engine: FakeEngine) -> None:
    engine.fault = "hang"
    desk = Desk(engine)
    replies = [desk.ask(f"v{i}", said("话"), SAMPLING) for i in range(3)]
    desk.close()
    assert all(reply.finish == "stopped" for reply in replies) and engine.busy == 0
    with pytest.raises(Refused, match="shutting down"):
        desk.ask("v", said("话"), SAMPLING)


def test_limits_from_the_environment() -> None:
    assert Limits.from_environment({"HUANHUAN_QUEUE": "3", "HUANHUAN_HOURLY": "9"}) == Limits(queue=3, hourly=9)
    with pytest.raises(UserError) as caught:
        Limits.from_environment({"HUANHUAN_QUEUE": "many", "HUANHUAN_HOURLY": "0"})
    assert len(caught.value.problems) == 2


def test_twenty_visitors_at_once_lose_and_cross_nothing() -> None:
    """A slow engine with three slots behind the guard; some visitors stop half-way, some go away."""
    engine = FakeEngine(delay=0.002, slots=3)
    desk = Desk(GuardedEngine(engine), Limits(queue=40, unread=0.5, hourly=1000))
    wrong: list[str] = []

    def visitor(number: int) -> None:
        chance = random.Random(number)
        for turn in range(6):
            text = f"访客{number}的第{turn}句"
            reply = desk.ask(f"v{number}", said(text), SAMPLING)
            what = chance.random()
            if what < 0.2:
                time.sleep(chance.random() * 0.05)
                reply.stop()
                reply.wait(5)
                if not f"回「{text}」第1句".startswith(reply.text):
                    wrong.append(reply.text)
            elif what < 0.3:
                continue
            elif reply.result() != f"回「{text}」第1句":
                wrong.append(reply.text)

    visitors = [threading.Thread(target=visitor, args=(number,)) for number in range(20)]
    for each in visitors:
        each.start()
    for each in visitors:
        each.join(30)
        assert not each.is_alive()
    assert wrong == []
    eventually(lambda: desk.running == desk.waiting == 0)
    assert engine.busy == 0 and engine.most_busy == 3
    desk.close()
