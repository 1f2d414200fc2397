"""An engine against the held-out lines: the prompts, their order, the scores and what the guard counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Test folders are no packages; the fake engine is imported by name from there.
sys.path.insert(0, str(ROOT / "tests/chat"))

from fake_engine import FakeEngine  # type: ignore[import-not-found]  # noqa: E402

from huanhuan.chat.engine import GREEDY, EngineError, Sampling  # noqa: E402
from huanhuan.chat.transformers_engine import TransformersEngine  # noqa: E402
from huanhuan.errors import UserError  # noqa: E402
from huanhuan.evaluate.metrics import chrf  # noqa: E402
from huanhuan.evaluate.replies import Prompt, answered, prompts  # noqa: E402
from huanhuan.template import encode  # noqa: E402

RECORDS: list[list[dict[str, str]]] = [
    [{"system": "花匠", "input": "你是谁？", "output": "种花的人。"}, {"input": "什么花？", "output": "海棠。"}],
    [{"input": "下雨了。", "output": "那便不浇花了。"}],
]


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "val.jsonl"
    path.write_text("".join(json.dumps({"conversation": each}, ensure_ascii=False) + "\n" for each in RECORDS), "utf-8")
    return path


@pytest.fixture
def asked(held_out: Path) -> list[Prompt]:
    return list(prompts(held_out))


def by_heart(**other: str) -> Callable[[Any], str]:
    """Says what the file says, but for the prompts named."""
    told = {each["input"]: each["output"] for record in RECORDS for each in record} | other
    return lambda messages: told[messages[-1]["content"]]


def test_every_reply_of_the_file_is_asked_for_after_its_true_history(held_out: Path) -> None:
    told = [([each["content"] for each in prompt], reference) for prompt, reference in prompts(held_out)]
    assert told == [
        (["花匠", "你是谁？"], "种花的人。"),
        (["花匠", "你是谁？", "种花的人。", "什么花？"], "海棠。"),
        (["下雨了。"], "那便不浇花了。"),
    ]


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_answers_come_in_the_order_of_the_file_with_their_scores(asked: list[Prompt], slots: int) -> None:
    engine = FakeEngine(by_heart(**{"什么花？": "牡丹。"}), slots=slots, delay=0.002)
    heard: list[tuple[int, int]] = []
    result = answered(asked, engine, progress=lambda done, of: heard.append((done, of)))
    assert [(each.reply, each.reference) for each in result.answers] == [
        ("种花的人。", "种花的人。"),
        ("牡丹。", "海棠。"),
        ("那便不浇花了。", "那便不浇花了。"),
    ]
    assert [each.chrf for each in result.answers] == pytest.approx([100, chrf("牡丹。", "海棠。"), 100])
    assert result.chrf == pytest.approx(sum(each.chrf for each in result.answers) / 3)
    assert heard == [(1, 3), (2, 3), (3, 3)] and not result.problems and engine.most_busy <= slots
    assert all(sampling == GREEDY for _, sampling in engine.seen)
    contents = [[each["content"] for each in messages] for messages, _ in engine.seen]
    assert ["花匠", "你是谁？", "种花的人。", "什么花？"] in contents, (
        "the history is the file's, not what was answered"
    )


def test_the_guard_works_here_too_and_its_counts_are_returned(asked: list[Prompt]) -> None:
    said: list[str] = []

    def answer(messages: Any) -> str:
        said.append(messages[-1]["content"])
        if messages[-1]["content"] == "下雨了。":
            return "好的，" * 90
        return "作为一个AI语言模型，我……" if said.count(messages[-1]["content"]) == 1 else "好。"

    result = answered(asked, FakeEngine(answer))
    assert result.problems == {"role": 2, "loop": 1} and result.kept == 1
    assert [each.finish for each in result.answers] == ["stop", "stop", "cut"]
    assert [each.reply for each in result.answers[:2]] == ["好。", "好。"]
    plain = answered(asked, FakeEngine(by_heart(**{"你是谁？": "我是AI。"})), environ={"HUANHUAN_GUARD": "off"})
    assert plain.answers[0].reply == "我是AI。" and not plain.problems


def test_the_first_prompts_are_enough(asked: list[Prompt]) -> None:
    engine = FakeEngine(by_heart())
    assert len(answered(asked[:2], engine).answers) == 2 == len(engine.seen)
    assert answered([], engine).chrf == 0


def test_a_failing_engine_stops_what_still_runs(held_out: Path, asked: list[Prompt]) -> None:
    class Failing(FakeEngine):
        def _write(self, reply: Any, messages: Any, sampling: Any) -> Any:
            self.fault = "raise" if messages[-1]["content"] == "你是谁？" else "hang"
            return super()._write(reply, messages, sampling)

    engine = Failing(slots=3)
    with pytest.raises(EngineError):
        answered(asked, engine)
    with pytest.raises(UserError, match="nowhere"):
        list(prompts(held_out.with_name("nowhere.jsonl")))


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Iterator[TransformersEngine]:
    built = TransformersEngine(tiny_base)
    yield built
    built.close()


def test_the_real_engine_answers_the_project_s_own_file(engine: TransformersEngine, asked: list[Prompt]) -> None:
    sampling = Sampling(temperature=0, max_new_tokens=6)
    first, second = answered(asked, engine, sampling), answered(asked, engine, sampling)
    assert len(first.answers) == 3 and all(0 <= each.chrf <= 100 for each in first.answers)
    unguarded = [each.reply for each in answered(asked, engine, sampling, environ={"HUANHUAN_GUARD": "off"}).answers]
    assert unguarded == [engine.reply(each.prompt, sampling).result() for each in first.answers]
    assert first.problems == second.problems and len(encode(engine.tokenizer, first.answers[1].prompt)) > 20
    ours = answered(list(prompts(ROOT / "data/huanhuan/val.jsonl"))[:2], engine, sampling)
    assert len(ours.answers) == 2 and ours.answers[0].prompt[0]["role"] == "system"


def test_the_report_says_what_the_guard_found_and_the_worst_replies(asked: list[Prompt], tmp_path: Path) -> None:
    engine = FakeEngine(by_heart(**{"什么花？": "好的，" * 90, "你是谁？": "我是种花的。"}))
    result = answered(asked, engine)
    told = result.report(shown=1)
    assert told.splitlines()[:3] == [
        f"3 句回复 / replies, chrF {result.chrf:.1f}",
        "结束 / ended: stop 2, cut 1",
        "检查 / guard: loop 1; 重说后仍如此 / no better the second time: 1",
    ]
    assert "asked: 什么花？" in told and "script: 海棠。" in told and "你是谁？" not in told
    result.save(tmp_path / "out/replies.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out/replies.jsonl").read_text("utf-8").splitlines()]
    assert [line["reference"] for line in lines] == ["种花的人。", "海棠。", "那便不浇花了。"]
    assert lines[1]["messages"][-1] == {"role": "user", "content": "什么花？"} and lines[1]["finish"] == "cut"
    assert "guard: off" in answered(asked, engine, environ={"HUANHUAN_GUARD": "off"}).report()


def test_the_tool_answers_a_file_with_a_real_model(held_out: Path, tiny_base: Path, tmp_path: Path) -> None:
    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "tools/evaluate.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=100,
            cwd=tmp_path,
            env={**os.environ, "HUANHUAN_ENGINE": "transformers", **environ},
            check=False,
        )

    out = tmp_path / "replies.jsonl"
    options = ("--model", str(tiny_base), "--most", "2", "--max-new-tokens", "4")
    done = run(str(held_out), *options, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "2 句回复 / replies, chrF " in done.stdout and "guard: " in done.stdout
    assert len(out.read_text("utf-8").splitlines()) == 2
    for wrong, said in (
        (run(str(tmp_path / "none.jsonl"), *options), "none.jsonl"),
        (run(str(held_out), *options, HUANHUAN_GUARD="of"), "HUANHUAN_GUARD=of"),
        (run(str(held_out), *options, "--temperature", "5"), "temperature"),
    ):
        assert wrong.returncode == 1 and said in wrong.stderr and not wrong.stdout, wrong.stderr
        assert wrong.stderr.count("\n") == 1
