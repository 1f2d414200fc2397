"""The guard: what it notices, what it lets pass, and how it has a reply said again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import pytest
from fake_engine import FakeEngine  # type: ignore[import-not-found]
from hypothesis import given
from hypothesis import strategies as st

from huanhuan.chat.engine import GREEDY, SEEDS, EngineError, Finish, Reply, Sampling
from huanhuan.chat.guard import GuardedEngine, adjusted, breaks_role, guarded, loops, problem
from huanhuan.errors import UserError
from huanhuan.template import Message

ASKED: list[Message] = [{"role": "user", "content": "你是谁？"}]
GOOD = "我是这园子里种花的人。"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("……", "empty"),
        ("作为一个AI语言模型，我没有感情。", "role"),
        ("抱歉，作为人工智能，我不能回答。", "role"),
        ("我是一个由上海某实验室开发的语言模型", "role"),
        ("我是书生·浦语。", "role"),
        ("As an AI language model, I cannot.", "role"),
        ("I'm just an AI.", "role"),
        ("好" * 24, "loop"),
        ("你且听我说，" * 6, "loop"),
        ("今日天气甚好，正该出门。\n" * 4, "loop"),
        (GOOD, None),
        ("嗯。", None),
        ("哈哈哈哈哈哈，好，好，好！", None),
        ("我是人工智能吗？我可不知道那是什么。", None),
        ("罢了，罢了，罢了。去吧。", None),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15", None),
        ("……………………", "empty"),
    ],
)
def test_what_is_wrong_with_a_reply(text: str, expected: str | None) -> None:
    assert problem(text) == expected


def test_an_unfinished_reply_is_not_empty_yet() -> None:
    assert problem("", finished=False) is None
    assert problem("…", finished=False) is None


@given(st.text(st.sampled_from("你我他宫墙海棠风雨月"), min_size=1, max_size=30), st.text(max_size=40))
def test_any_unit_repeated_long_enough_is_a_loop(unit: str, before: str) -> None:
    assert loops(before + unit * 24)


@given(st.lists(st.sampled_from("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"), unique=True, max_size=24))
def test_text_without_repetition_is_no_loop(letters: list[str]) -> None:
    assert not loops("".join(letters))


def turns(*texts: str) -> Callable[[object], str]:
    answers = itertools.chain(texts, itertools.repeat(texts[-1]))
    return lambda _: next(answers)


def test_a_good_reply_passes_untouched() -> None:
    engine = GuardedEngine(FakeEngine(lambda _: GOOD))
    reply = engine.reply(ASKED, Sampling(max_new_tokens=50))
    assert reply.result() == GOOD and reply.restarts == 0 and not engine.counts
    assert reply.tokens == len(GOOD) and reply.first_token_seconds is not None


@pytest.mark.parametrize(
    ("bad", "found"), [("", "empty"), ("作为一个AI语言模型，我……", "role"), ("好的，" * 300, "loop")]
)
def test_a_bad_reply_is_said_once_more_with_other_sampling(bad: str, found: str) -> None:
    fake = FakeEngine(turns(bad, GOOD))
    engine = GuardedEngine(fake)
    reply = engine.reply(ASKED, GREEDY)
    assert reply.wait(5) and reply.text == GOOD and reply.restarts == 1
    assert engine.counts == {found: 1} and engine.kept == 0
    first, second = (sampling for _, sampling in fake.seen)
    assert first.greedy and not second.greedy
    assert (second.repetition_penalty > 1) == (found == "loop")
    assert fake.busy == 0


def test_a_loop_is_cut_long_before_its_end() -> None:
    fake = FakeEngine(turns("好的，" * 100, GOOD), delay=0.001)
    reply = GuardedEngine(fake).reply(ASKED)
    said = "".join(reply.ticks())
    assert len(said) < 100 + len(GOOD) and reply.text == GOOD


def test_it_tries_only_once_more() -> None:
    fake = FakeEngine(lambda _: "作为一个AI语言模型，我没有名字。")
    engine = GuardedEngine(fake)
    assert engine.reply(ASKED).result().startswith("作为一个AI")
    assert len(fake.seen) == 2 and engine.kept == 1


def test_a_second_loop_is_cut_and_says_so() -> None:
    reply = GuardedEngine(FakeEngine(lambda _: "好的，" * 300)).reply(ASKED)
    assert reply.wait(5) and reply.finish == "cut" and 20 < len(reply.text) < 200


def test_a_second_try_out_of_role_is_kept_whole_and_ends_as_it_did() -> None:
    text = "作为一个AI语言模型，我没有名字。" + "".join(f"第{number}句各不相同。" for number in range(30))
    engine = GuardedEngine(FakeEngine(lambda _: text))
    assert engine.reply(ASKED).result() == text
    long = engine.reply(ASKED, Sampling(max_new_tokens=100))
    assert long.wait(5) and long.finish == "length" and long.text == text[:100]
    assert engine.counts == {"role": 2} and engine.kept == 2


@pytest.mark.parametrize(
    "kept", ["好的，" * 40, "今日天气甚好，正该出门。" * 5, "作为一个AI语言模型，我没有名字。", "……"]
)
def test_what_was_kept_before_is_no_fault_of_its_continuation(kept: str) -> None:
    more = "罢了，不说这些。" + "".join(f"第{number}件事要紧。" for number in range(9))
    engine = GuardedEngine(FakeEngine(lambda _: more))
    reply = engine.reply([*ASKED, {"role": "assistant", "content": kept}])
    assert reply.result() == more and not engine.counts


def test_a_loop_that_goes_on_over_the_border_is_noticed() -> None:
    engine = GuardedEngine(FakeEngine(turns("好的，" * 100, GOOD)))
    reply = engine.reply([*ASKED, {"role": "assistant", "content": "知道了。" + "好的，" * 3}])
    assert reply.result().endswith(GOOD) and engine.counts == {"loop": 1}
    assert loops("好的，" * 4, "好的，" * 4) and not loops("好的，", "好的，" * 8)
    sentence = "今日天气甚好，正该出门。"
    assert loops(f"是啊。{sentence}走吧！{sentence}", f"{sentence}可不是。{sentence}")
    assert not loops(f"是啊。{sentence}走吧！", f"{sentence}可不是。{sentence}嗯。{sentence}")


def test_words_that_may_still_become_a_question_are_waited_for() -> None:
    asked = "你问我究竟是什么，我倒也想问一问你，我是人工智能"
    assert len(asked) == 24 and not breaks_role(asked, finished=False) and breaks_role(asked)
    engine = GuardedEngine(FakeEngine(lambda _: asked + "吗？我可不知道。"))
    assert engine.reply(ASKED).result().endswith("不知道。") and not engine.counts


class Late(FakeEngine):
    """Takes its time before the first piece, and counts its tokens after the last one."""

    def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        reply.begin()
        time.sleep(0.15)
        for piece in self.answer(messages):
            reply.add(piece)
        reply.add("", 99)
        return "stop"


def test_times_and_tokens_are_those_of_the_engine_inside() -> None:
    reply = GuardedEngine(Late(lambda _: GOOD)).reply(ASKED)
    assert reply.result() == GOOD and reply.wait(5) and reply.tokens == 99
    assert reply.first_token_seconds is not None and 0.15 <= reply.first_token_seconds < 1


def test_what_answers_and_how_much_it_takes_is_asked_anew() -> None:
    fake = FakeEngine()
    engine = GuardedEngine(fake)
    fake.model, fake.label, fake.slots, fake.context_tokens, fake.fallback = "other", "Other", 7, 99, "why"
    assert (engine.model, engine.label, engine.slots, engine.context_tokens, engine.fallback) == (
        "other",
        "Other",
        7,
        99,
        "why",
    )


def test_a_long_history_is_counted_by_the_engine_inside() -> None:
    class Sized(FakeEngine):
        def size(self, message: Message) -> int:
            return 1

        def count(self, messages: Sequence[Message]) -> int:
            return len(messages)

    messages: list[Message] = [*ASKED, {"role": "assistant", "content": "长" * 9000}, *ASKED]
    assert GuardedEngine(Sized(lambda _: GOOD)).reply(messages).dropped == 0


def test_a_stop_is_final() -> None:
    fake = FakeEngine(lambda _: "好的，" * 500, delay=0.005)
    reply = GuardedEngine(fake).reply(ASKED)
    while not reply.text:
        assert not reply.done
    reply.stop()
    assert reply.wait(5) and reply.finish == "stopped" and len(fake.seen) == 1


@pytest.mark.parametrize("fault", ["raise", "mid", "refuse"])
def test_errors_pass_through(fault: str) -> None:
    fake = FakeEngine()
    fake.fault = fault
    with pytest.raises(EngineError):
        GuardedEngine(fake).reply(ASKED).result()
    assert len(fake.seen) == 1


def test_a_continued_reply_is_judged_with_its_beginning() -> None:
    fake = FakeEngine(turns("语言模型，我没有感情。", "种花的，自然懂花。"))
    messages: list[Message] = [*ASKED, {"role": "assistant", "content": "作为一个"}]
    assert GuardedEngine(fake).reply(messages).wait(5)
    assert len(fake.seen) == 2


def test_the_guard_can_be_switched_off() -> None:
    fake = FakeEngine()
    for off in ("off", "OFF", "0", "no", "false"):
        assert guarded(fake, {"HUANHUAN_GUARD": off}) is fake
    for on in ({}, {"HUANHUAN_GUARD": "on"}, {"HUANHUAN_GUARD": " "}, {"HUANHUAN_GUARD": "1"}):
        assert isinstance(guarded(fake, on), GuardedEngine)
    with pytest.raises(UserError, match=r"HUANHUAN_GUARD=of: .*must be on or off"):
        guarded(fake, {"HUANHUAN_GUARD": "of"})


def test_adjusted_sampling_stays_in_range_and_changes_the_seed() -> None:
    for temperature in (0, 0.5, 2):
        for found in ("loop", "empty", "role"):
            new = adjusted(Sampling(temperature=temperature, seed=4), found)
            assert new.temperature <= 1.2 and new.seed == 5
    assert adjusted(Sampling(seed=SEEDS - 1), "loop").seed == 0
