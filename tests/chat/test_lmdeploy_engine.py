"""What LMDeploy is given; it needs CUDA to run, so its pipeline is played by a double with the same interface."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lmdeploy import ChatTemplateConfig, PytorchEngineConfig, Tokenizer, TurbomindEngineConfig

from huanhuan.chat import lmdeploy_engine
from huanhuan.chat.engine import GREEDY, EngineError, Sampling
from huanhuan.chat.lmdeploy_engine import LMDeployEngine, engine_config, turbomind_problem
from huanhuan.chat.runners import LoopThread
from huanhuan.errors import UserError
from huanhuan.template import Message, encode, lmdeploy_fields

ASKED: list[Message] = [{"role": "system", "content": "花匠"}, {"role": "user", "content": "你是谁？"}]


class Pipeline:
    """LMDeploy's ``AsyncEngine`` as far as the engine uses it, one slot, over a list of token texts."""

    def __init__(self, folder: Path, config: Any) -> None:
        self.tokenizer = Tokenizer(str(folder))
        self.backend = "pytorch" if isinstance(config, PytorchEngineConfig) else "turbomind"
        self.session_len, self.instance_num = config.session_len, 1
        self._thread = LoopThread("pipeline")
        self.internal_thread = SimpleNamespace(loop=self._thread.loop, thread=self._thread._thread)
        self._session_id = iter(range(1000))
        self.id2inst: dict[int, Any] = {}
        self.id2step: dict[int, int] = {}
        self.slot = asyncio.Semaphore(1)
        self.stopped: set[int] = set()
        self.requests: list[dict[str, Any]] = []
        self.words = ["臣妾", "在", "此"]
        self.ending: str | None = "stop"
        self.endless = False

    async def generate(self, messages: Any, **request: Any) -> AsyncIterator[Any]:
        assert messages is None
        session = request["session_id"]
        self.id2step[session] = 0
        async with self.slot:
            self.requests.append(request)
            self.id2inst[session] = object()
            try:
                number = 0
                while number < len(self.words) or self.endless:
                    await asyncio.sleep(0.005)
                    if session in self.stopped:
                        yield SimpleNamespace(response="", generate_token_len=number, finish_reason="abort")
                        return
                    word = self.words[number % len(self.words)]
                    number += 1
                    yield SimpleNamespace(response=word, generate_token_len=number, finish_reason=None)
                if self.ending == "raise":
                    raise RuntimeError("secret detail")
                if self.ending:
                    text = "internal error happened, status code 7" if self.ending == "error" else ""
                    yield SimpleNamespace(response=text, generate_token_len=number, finish_reason=self.ending)
            finally:
                del self.id2inst[session]

    async def stop_session(self, session: int) -> None:
        self.stopped.add(session)

    def close(self) -> None:
        self._thread.close()


@pytest.fixture
def engine(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LMDeployEngine]:
    monkeypatch.setattr(LMDeployEngine, "_build", lambda self, config: Pipeline(self.folder, config))
    built = LMDeployEngine(tiny_base, backend="pytorch")
    yield built
    built.close()


def test_the_model_sees_the_template_s_ids(engine: LMDeployEngine) -> None:
    reply = engine.reply(ASKED, Sampling(max_new_tokens=7))
    assert reply.result() == "臣妾在此" and reply.finish == "stop" and reply.tokens == 3
    request = engine._pipeline.requests[0]
    assert request["input_ids"] == encode(engine.tokenizer, ASKED)
    assert request["sequence_start"] and request["sequence_end"] and request["stream_response"]
    # LMDeploy's own rendering with the fields it is given says the same.
    template = ChatTemplateConfig(**lmdeploy_fields()).chat_template  # type: ignore[arg-type]
    assert engine._pipeline.tokenizer.encode(template.messages2prompt(ASKED)) == request["input_ids"]


def test_sampling_takes_effect(engine: LMDeployEngine) -> None:
    sampled = engine.generation_config(Sampling(0.7, 0.9, 30, 99, 1.1, seed=5))
    assert sampled.do_sample
    assert (sampled.temperature, sampled.top_p, sampled.top_k, sampled.max_new_tokens) == (0.7, 0.9, 30, 99)
    assert (sampled.repetition_penalty, sampled.random_seed) == (1.1, 5)
    greedy = engine.generation_config(GREEDY)
    assert not greedy.do_sample
    tokenizer = engine.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert set(sampled.stop_token_ids) == ends == set(greedy.stop_token_ids)


def test_a_stop_cancels_the_session_and_the_next_gets_the_slot(engine: LMDeployEngine) -> None:
    pipeline = engine._pipeline
    pipeline.endless = True
    first, second = engine.reply(ASKED), engine.reply(ASKED)
    next(iter(first))
    second.stop()
    assert second.wait(2) and second.finish == "stopped", "one that waits for a slot leaves the line"
    first.stop()
    assert first.wait(2) and first.finish == "stopped" and first.text.startswith("臣妾")
    assert pipeline.stopped == {0} and engine.running() == 0 and pipeline.id2step == {}
    pipeline.endless = False
    assert engine.reply(ASKED).result() == "臣妾在此"


@pytest.mark.parametrize("ending", ["error", "raise", None])
def test_a_failing_generation_is_an_error_and_never_blocks(engine: LMDeployEngine, ending: str | None) -> None:
    engine._pipeline.ending = ending
    reply = engine.reply(ASKED)
    with pytest.raises(EngineError) as caught:
        reply.result()
    assert "internal error happened" not in reply.text and "secret" not in str(caught.value)
    engine._pipeline.ending = "length"
    assert engine.reply(ASKED).wait(2)


def test_a_dead_pipeline_is_unhealthy(engine: LMDeployEngine) -> None:
    assert engine.healthy()
    alive = engine._pipeline.internal_thread.thread
    engine._pipeline.internal_thread.thread = threading.Thread()
    assert not engine.healthy()
    engine._pipeline.internal_thread.thread = alive
    ended = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), engine.loop)
    ended.result(2)
    engine._pipeline.engine = SimpleNamespace(req_manager=SimpleNamespace(_loop_task=ended))
    assert not engine.healthy()


def test_turbomind_s_configuration(tmp_path: Path) -> None:
    """TurboMind itself has not run here: it needs a CUDA 12 device."""
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    environ = {"HUANHUAN_CONTEXT": "8192", "HUANHUAN_SLOTS": "4", "HUANHUAN_KV_CACHE": "0.3", "HUANHUAN_KV_BITS": "8"}
    config = engine_config("turbomind", tmp_path, environ)
    assert isinstance(config, TurbomindEngineConfig)
    assert (config.session_len, config.max_batch_size, config.cache_max_entry_count) == (8192, 4, 0.3)
    assert (config.quant_policy, config.model_format, config.tp) == (8, "awq", 1)
    plain = engine_config("pytorch", tmp_path, {})
    assert isinstance(plain, PytorchEngineConfig)
    assert (plain.session_len, plain.max_batch_size, plain.quant_policy) == (4096, 16, 0)


def test_every_wrong_setting_is_told_at_once(tmp_path: Path) -> None:
    environ = {"HUANHUAN_CONTEXT": "many", "HUANHUAN_KV_CACHE": "2", "HUANHUAN_KV_BITS": "5"}
    with pytest.raises(UserError) as caught:
        engine_config("pytorch", tmp_path, environ)
    assert [line.split("=")[0] for line in caught.value.problems] == list(environ)


def test_the_backend_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUANHUAN_LMDEPLOY_BACKEND", raising=False)
    assert lmdeploy_engine.wanted_backend() == "turbomind"
    monkeypatch.setenv("HUANHUAN_LMDEPLOY_BACKEND", "PyTorch")
    assert lmdeploy_engine.wanted_backend() == "pytorch"
    monkeypatch.setenv("HUANHUAN_LMDEPLOY_BACKEND", "cpu")
    with pytest.raises(UserError, match="turbomind or pytorch"):
        lmdeploy_engine.wanted_backend()


def test_a_silent_fall_back_is_noticed_and_shown(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The same answer each time: a failed import of LMDeploy's leaves modules behind.
    assert turbomind_problem(tiny_base) == turbomind_problem(tiny_base)
    monkeypatch.setattr(LMDeployEngine, "_build", lambda self, config: Pipeline(self.folder, config))
    monkeypatch.setattr(lmdeploy_engine, "turbomind_problem", lambda folder: "TurboMind is not installed")
    built = LMDeployEngine(tiny_base, backend="turbomind")
    try:
        assert built.backend == "pytorch" and "TurboMind ✗" in built.label
        assert "TurboMind is not installed" in caplog.text
    finally:
        built.close()


def test_a_fall_back_that_lmdeploy_itself_chose_is_noticed_too(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdeploy_engine, "turbomind_problem", lambda folder: None)
    monkeypatch.setattr(
        LMDeployEngine, "_build", lambda self, config: Pipeline(self.folder, PytorchEngineConfig(session_len=512))
    )
    built = LMDeployEngine(tiny_base, backend="turbomind")
    try:
        assert built.backend == "pytorch" and built.fallback and "TurboMind ✗" in built.label
        assert built.context_tokens == 512
    finally:
        built.close()
