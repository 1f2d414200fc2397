"""The Transformers engine over a real, tiny InternLM2."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from huanhuan.chat.decoding import IncrementalDecoder
from huanhuan.chat.engine import GREEDY, EngineError, Sampling, Timeouts
from huanhuan.chat.prompt import prompt_ids
from huanhuan.chat.transformers_engine import TransformersEngine
from huanhuan.errors import UserError
from huanhuan.template import CONTROL_TOKENS, END, START, Message, encode

ASKED: list[Message] = [{"role": "system", "content": "花匠"}, {"role": "user", "content": "你是谁？"}]


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Iterator[TransformersEngine]:
    built = TransformersEngine(tiny_base)
    yield built
    built.close()


def test_a_greedy_reply_equals_the_argmax_loop(engine: TransformersEngine) -> None:
    ids = encode(engine.tokenizer, ASKED)
    made: list[int] = []
    with torch.inference_mode():
        for _ in range(12):
            logits = engine._model(torch.tensor([ids + made])).logits[0, -1]
            made.append(int(logits.argmax()))
            if made[-1] in engine.stop_ids:
                break
    reply = engine.reply(ASKED, Sampling(temperature=0, max_new_tokens=12))
    expected = engine.tokenizer.decode([i for i in made if i not in engine.stop_ids], skip_special_tokens=True)
    assert reply.result() == expected.rstrip("�")
    assert reply.tokens == len(made)


def test_a_reply_can_be_continued_where_it_ended(engine: TransformersEngine) -> None:
    half: list[Message] = [*ASKED, {"role": "assistant", "content": "我是这园子里"}]
    ids = prompt_ids(engine.tokenizer, half)
    assert engine.tokenizer.decode(ids).endswith(f"{START}assistant\n我是这园子里")
    whole = encode(engine.tokenizer, half, add_generation_prompt=False)
    assert ids == whole[: len(ids)]
    assert engine.reply(half, Sampling(temperature=0, max_new_tokens=4)).wait(10)


def test_a_stop_ends_the_thread_and_frees_the_engine(engine: TransformersEngine) -> None:
    before = threading.active_count()
    reply = engine.reply(ASKED, Sampling(temperature=2, top_p=1, top_k=0, max_new_tokens=1500, seed=3))
    while not (reply.tokens or reply.done):
        time.sleep(0.001)
    reply.stop()
    assert reply.wait(5)
    assert reply.tokens < 1500
    end = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert engine.reply(ASKED, Sampling(max_new_tokens=2)).wait(5)


def test_the_setting_and_the_model_bound_the_context(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {}
    for wanted in ("", "300", "1000000"):
        monkeypatch.setenv("HUANHUAN_CONTEXT", wanted)
        built = TransformersEngine(tiny_base)
        limits[wanted] = built.context_tokens
        longest = built._model.config.max_position_embeddings
        built.close()
    assert limits == {"": min(4096, longest), "300": 300, "1000000": longest}
    monkeypatch.setenv("HUANHUAN_CONTEXT", "many")
    with pytest.raises(UserError, match="HUANHUAN_CONTEXT=many"):
        TransformersEngine(tiny_base)


def test_an_imported_conversation_of_any_length_starts_at_once(engine: TransformersEngine) -> None:
    messages: list[Message] = [{"role": "system", "content": "花匠"}]
    for number in range(2000):
        messages.append({"role": "user", "content": f"{number}：你是谁？姐姐从哪里来？"})
        messages.append({"role": "assistant", "content": "我是这园子里种花的人。" * 3})
    messages.append({"role": "user", "content": "那你说说，这花叫什么名字？"})
    sampling = Sampling(max_new_tokens=20)
    started = time.thread_time()
    kept = engine.fit(messages, sampling)
    assert time.thread_time() - started < 0.5
    room = engine.context_tokens - 20
    assert kept[0] == messages[0] and kept[1:] == messages[1 - len(kept) :] and kept[1]["role"] == "user"
    assert engine.count(kept) == len(prompt_ids(engine.tokenizer, kept)) <= room
    assert engine.count([messages[0], *messages[-1 - len(kept) :]]) > room, "one exchange more would not fit"


def test_a_generation_that_is_stuck_is_noticed_and_closing_does_not_wait_for_it(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = TransformersEngine(tiny_base)
    built.timeouts = Timeouts(0.2, 0.2, 5)
    go_on = threading.Event()
    monkeypatch.setattr(built._model, "generate", lambda *_, **__: go_on.wait(30))
    assert built.healthy()
    reply = built.reply(ASKED)
    assert built.healthy(), "it has just begun"
    with pytest.raises(EngineError, match="did not answer in time"):
        reply.result()
    assert not built.healthy() and not reply.released
    started = time.monotonic()
    built.close(0.2)
    assert time.monotonic() - started < 1
    go_on.set()
    end = time.monotonic() + 5
    while not reply.released and time.monotonic() < end:
        time.sleep(0.01)
    assert built.healthy()
    built.close()
    assert not built.healthy()
    with pytest.raises(EngineError, match="closed"):
        built.reply(ASKED).result()


def test_a_stopped_reply_leaves_the_line(engine: TransformersEngine) -> None:
    with engine._lock:
        waiting = engine.reply(ASKED, GREEDY)
        waiting.stop()
        assert waiting.wait(2) and waiting.finish == "stopped"


def test_the_same_seed_gives_the_same_reply_and_temperature_matters(engine: TransformersEngine) -> None:
    def said(**settings: Any) -> str:
        return engine.reply(ASKED, Sampling(max_new_tokens=20, top_k=0, **settings)).result()

    assert said(temperature=1.5, seed=1) == said(temperature=1.5, seed=1)
    assert len({said(temperature=1.5, seed=seed) for seed in range(6)}) > 1
    assert len({said(temperature=0, seed=seed) for seed in range(3)}) == 1


def test_max_new_tokens_is_kept_and_reported(engine: TransformersEngine) -> None:
    reply = engine.reply(ASKED, Sampling(max_new_tokens=3, temperature=2, top_p=1, top_k=0, seed=11))
    reply.wait(10)
    assert reply.tokens == 3 and reply.finish == "length"


def test_the_reply_ends_at_the_end_token(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    end = engine.tokenizer.convert_tokens_to_ids(END)
    head = engine._model.get_output_embeddings()

    def only_the_end(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output[..., end] = 1e9
        return output

    handle = head.register_forward_hook(only_the_end)
    try:
        reply = engine.reply(ASKED, GREEDY)
        assert reply.result() == "" and reply.finish == "stop" and reply.tokens == 1
    finally:
        handle.remove()


typed = st.lists(
    st.sampled_from([*CONTROL_TOKENS[:9], *CONTROL_TOKENS[-2:], "<|im_", "start|>", "|>", "user\n", "你好", " ", "\n"]),
    max_size=10,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(typed.map("".join), typed.map("".join))
def test_role_tokens_typed_by_a_user_never_reach_the_model(engine: TransformersEngine, first: str, last: str) -> None:
    messages: list[Message] = [
        {"role": "system", "content": "花匠"},
        {"role": "user", "content": first + "甲"},
        {"role": "assistant", "content": "好" + first},
        {"role": "user", "content": last + "乙"},
    ]
    ids = prompt_ids(engine.tokenizer, engine.fit(messages, GREEDY))
    names = {token: engine.tokenizer.convert_tokens_to_ids(token) for token in CONTROL_TOKENS}
    assert ids.count(names[START]) == 5 and ids.count(names[END]) == 4
    assert ids.count(engine.tokenizer.bos_token_id) == 1 and engine.tokenizer.eos_token_id not in ids
    for token in set(CONTROL_TOKENS) - {START, END, "<s>", "<unk>"}:
        assert names[token] in (engine.tokenizer.unk_token_id, None) or names[token] not in ids


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.sampled_from("你我他她宫墙海棠 abcé嬛𠮷🌸，。\n"), max_size=30), st.integers(1, 4))
def test_decoding_piece_by_piece_equals_decoding_at_once(tiny_tokenizer: Any, text: str, step: int) -> None:
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    decoder = IncrementalDecoder(tiny_tokenizer)
    pieces = [decoder.add(ids[i : i + step]) for i in range(0, len(ids), step)]
    whole = tiny_tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces) + decoder.end() == whole
    assert not any("�" in piece for piece in pieces)


def test_a_folder_that_holds_no_loadable_model_is_one_line(tmp_path: Path, tiny_base: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EngineError, match="check that the model is complete"):
        TransformersEngine(broken)
