"""The engine interface: the reply, its clock, and what of a conversation is sent."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pytest
from fake_engine import FakeEngine  # type: ignore[import-not-found]
from hypothesis import given
from hypothesis import strategies as st

from huanhuan.chat.engine import SEEDS, EngineError, Reply, Sampling, Timeouts
from huanhuan.errors import UserError
from huanhuan.template import CONTROL_TOKENS, Message


def talk(*texts: str, system: str = "") -> list[Message]:
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for number, text in enumerate(texts):
        messages.append({"role": "assistant" if number % 2 else "user", "content": text})
    return messages


def test_pieces_joined_are_the_reply() -> None:
    reply = FakeEngine(lambda _: "今日天气甚好").reply(talk("你好"))
    assert "".join(reply) == "今日天气甚好"
    assert (reply.text, reply.finish, reply.tokens) == ("今日天气甚好", "stop", 6)
    assert reply.first_token_seconds is not None and reply.tokens_per_second is not None


def test_two_readers_and_one_that_comes_late_see_the_same() -> None:
    reply = FakeEngine(delay=0.01).reply(talk("你好"))
    seen: list[str] = []
    other = threading.Thread(target=lambda: seen.append("".join(reply)))
    other.start()
    assert reply.result() == "回「你好」第1句"
    other.join(5)
    assert seen == [reply.text] == ["".join(reply)]
    assert "".join(reply.pieces(seen=2)) == reply.text[2:]


def test_a_stop_keeps_what_was_said_and_frees_the_slot() -> None:
    engine = FakeEngine(lambda _: "长" * 1000, delay=0.005)
    reply = engine.reply(talk("你好"))
    next(iter(reply))
    reply.stop()
    assert reply.wait(2)
    assert reply.finish == "stopped" and 0 < len(reply.text) < 1000
    assert engine.busy == 0


def test_a_reader_without_news_gets_a_tick() -> None:
    engine = FakeEngine()
    engine.fault = "hang"
    reply = engine.reply(talk("你好"))
    assert next(reply.ticks(every=0.01)) == ""
    reply.stop()
    assert reply.wait(2)


@pytest.mark.parametrize("limits", [Timeouts(0.1, 9, 9), Timeouts(9, 9, 0.1)], ids=["first", "total"])
def test_an_engine_that_never_answers_is_given_up_and_stopped(limits: Timeouts) -> None:
    engine = FakeEngine()
    engine.fault, engine.timeouts = "hang", limits
    reply = engine.reply(talk("你好"))
    with pytest.raises(EngineError, match="did not answer in time"):
        reply.result()
    end = time.monotonic() + 2
    while engine.busy and time.monotonic() < end:
        time.sleep(0.01)
    assert engine.busy == 0


def test_an_unexpected_error_becomes_one_sentence_with_an_id(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.fault = "mid"
    reply = engine.reply(talk("你好"))
    with pytest.raises(EngineError) as caught:
        reply.result()
    assert reply.text == "回「你"
    assert "secret" not in str(caught.value)
    assert caught.value.id in str(caught.value) and caught.value.id in caplog.text and "secret" in caplog.text


def test_sampling_out_of_range_names_every_setting() -> None:
    with pytest.raises(ValueError, match=r"temperature.*top_p.*max_new_tokens.*seed -1: 0 to"):
        Sampling(temperature=3, top_p=0, max_new_tokens=0, seed=-1)
    with pytest.raises(ValueError, match="seed"):
        Sampling(seed=SEEDS)


@pytest.mark.parametrize("wrong", ["soon", "0", "-5", "nan", "inf"])
def test_a_timeout_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("HUANHUAN_TIMEOUT", wrong)
    with pytest.raises(UserError, match=f"HUANHUAN_TIMEOUT={wrong}"):
        FakeEngine()


def test_the_oldest_exchanges_are_dropped_and_the_system_prompt_is_kept() -> None:
    engine = FakeEngine(context_tokens=40)
    reply = engine.reply(
        talk("一" * 10, "二" * 10, "三" * 5, "四" * 5, "五", system="人设"), Sampling(max_new_tokens=20)
    )
    reply.result()
    assert [each["content"] for each in engine.seen[0][0]] == ["人设", "三" * 5, "四" * 5, "五"]
    assert reply.dropped == 2


def test_a_message_that_cannot_fit_alone_is_refused() -> None:
    with pytest.raises(EngineError, match="too long"):
        FakeEngine(context_tokens=40).reply(talk("长" * 30), Sampling(max_new_tokens=20))


@pytest.mark.parametrize(("system", "longest"), [("", 40), ("人设" * 11, 20)])
def test_a_reply_length_that_leaves_no_room_is_told_as_that(system: str, longest: int) -> None:
    with pytest.raises(EngineError, match=rf"up to {longest} tokens fill the context of 40: lower the reply length"):
        FakeEngine(context_tokens=40).reply(talk("好", system=system), Sampling(max_new_tokens=longest))


@pytest.mark.parametrize("messages", [[], talk("  "), talk("<|im_end|>"), talk("甲", "乙", " "), talk(system="人设")])
def test_there_must_be_something_to_answer(messages: list[Message]) -> None:
    with pytest.raises(EngineError, match="say something"):
        FakeEngine().reply(messages)


pieces = st.sampled_from(
    [
        *CONTROL_TOKENS[:9],
        *CONTROL_TOKENS[-2:],
        "<|im_",
        "start|>",
        "<|",
        "|>",
        "<s",
        ">",
        "你好",
        "\n",
        " ",
        "system\n",
    ]
)


@given(st.lists(pieces, min_size=1, max_size=12).map("".join), st.integers(1, 60))
def test_what_reaches_the_engine_is_clean_fits_and_ends_with_the_user(text: str, room: int) -> None:
    engine = FakeEngine(context_tokens=100 + room)
    messages = talk(text, "好", text, "好", "末", system="人设" + text[:20])
    try:
        kept = engine.fit(messages, Sampling(max_new_tokens=100))
    except EngineError:
        return
    assert not any(token in each["content"] for each in kept for token in CONTROL_TOKENS)
    assert engine.count(kept) <= room
    assert kept[0]["role"] == "system" and kept[-1] == {"role": "user", "content": "末"}
    assert [each["role"] for each in kept[1:]].count("assistant") <= 2


class Counting(FakeEngine):
    """Counts the letters that it is asked to count."""

    counted = 0

    def count(self, messages: Sequence[Message]) -> int:
        found = super().count(messages)
        self.counted += found
        return found


def test_a_conversation_far_too_long_is_counted_once_and_only_what_can_be_kept() -> None:
    engine = Counting(context_tokens=4096)
    texts = [f"这是第{number:04d}句话，" + "说得长一些" * 20 for number in range(4001)]
    started = time.thread_time()
    kept = engine.fit(talk(*texts, system="人设"), Sampling(max_new_tokens=512))
    assert time.thread_time() - started < 0.5
    assert kept[0]["content"] == "人设" and kept[-1]["content"] == texts[-1]
    assert 3300 < engine.count(kept) <= 3584
    assert engine.counted < 4 * 4096


def test_a_sum_that_is_too_small_is_not_believed() -> None:
    class Careless(FakeEngine):
        def size(self, message: Message) -> int:
            return 1

    engine = Careless(context_tokens=100)
    kept = engine.fit(talk(*["十个字的一句话又来了"] * 21), Sampling(max_new_tokens=40))
    assert engine.count(kept) <= 60 and [each["role"] for each in kept] == ["user", "assistant"] * 2 + ["user"]


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(1, 60),
    st.booleans(),
)
def test_no_more_is_dropped_than_must_be(turns: list[tuple[str, int]], room: int, system: bool) -> None:
    rest: list[Message] = [{"role": role, "content": "字" * size} for role, size in turns]  # type: ignore[typeddict-item]
    head = talk(system="人设") if system else []
    engine = FakeEngine(context_tokens=room + 5)
    starts = [0, *(place for place, each in enumerate(rest) if place and each["role"] == "user")]
    fits = [place for place in starts if engine.count([*head, *rest[place:]]) <= room]
    try:
        kept = engine.fit([*head, *rest], Sampling(max_new_tokens=5))
    except EngineError as error:
        assert not fits or ("say something" in str(error) and not any(role == "user" for role, _ in turns))
    else:
        assert kept == [*head, *rest[fits[0] :]]


def test_time_counts_from_when_an_engine_takes_the_reply() -> None:
    reply = Reply(Timeouts(0.05, 9, 9))
    time.sleep(0.1)
    reply.check_time()
    assert not reply.overdue and not reply.done, "it still waits in a queue"
    reply.admit()
    assert not reply.overdue
    time.sleep(0.1)
    reply.check_time()
    assert reply.overdue and reply.error and reply.stop_requested, "the engine never began"


def test_importing_the_interface_loads_no_engine() -> None:
    code = (
        "import sys, huanhuan.chat.engine, huanhuan.chat.select, huanhuan.chat.terminal, huanhuan.chat.service\n"
        "print([name for name in ('torch', 'lmdeploy', 'openai', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
