"""LMDeploy in this process: TurboMind, or its PyTorch engine.

Replies do not go through ``pipeline.stream_infer``: in this release it blocks for ever when a generation
raises, and leaving its loop does not cancel anything. They are tasks on the pipeline's own event loop over
its ``generate``, with token ids as input, so that the model sees exactly what it was trained on.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huanhuan.chat.engine import EngineError, Finish, Reply, Sampling
from huanhuan.chat.prompt import message_size, prompt_ids
from huanhuan.chat.runners import LoopEngine, call_on
from huanhuan.cli import Terminated
from huanhuan.errors import UserError
from huanhuan.template import Message, stop_ids

logger = logging.getLogger("huanhuan.chat")

BACKENDS = ("turbomind", "pytorch")
# Seconds that a cancelled generation may take to give its slot back before its task is killed.
STOP_PATIENCE = 5.0


def import_lmdeploy() -> None:
    """Import LMDeploy with its log on standard error and every other log as loud as it was.

    By itself it writes to standard output, where the terminal chat's reply goes, and silences the handlers of
    the process below errors, the guard's warnings with them.
    """
    levels = [(handler, handler.level) for handler in logging.root.handlers]
    from lmdeploy.utils import get_logger

    for handler in get_logger("lmdeploy").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    for handler, level in levels:
        handler.setLevel(level)


def wanted_backend() -> str:
    """The backend that ``HUANHUAN_LMDEPLOY_BACKEND`` names, TurboMind if it is not set.

    Raises: UserError for any other value.
    """
    value = os.environ.get("HUANHUAN_LMDEPLOY_BACKEND", "").strip().lower() or "turbomind"
    if value not in BACKENDS:
        raise UserError(
            f"HUANHUAN_LMDEPLOY_BACKEND={value}: 只能是 turbomind 或 pytorch / must be turbomind or pytorch: correct it"
        )
    return value


def turbomind_problem(folder: Path) -> str | None:
    """Why TurboMind cannot serve ``folder`` here, or None.

    LMDeploy itself only writes a warning to its log and takes the slower engine.
    """
    if importlib.util.find_spec("lmdeploy.turbomind") is None:
        return "TurboMind is not installed"
    try:
        # The package alone imports even when its CUDA library does not, from the second attempt on.
        importlib.import_module("lmdeploy.turbomind.turbomind")
        from lmdeploy.turbomind.supported_models import is_supported
    except ImportError as error:
        return f"TurboMind cannot be loaded: {error}"
    return None if is_supported(str(folder)) else "TurboMind does not support this model"


def model_format(folder: Path) -> str | None:
    """``"awq"`` for a model quantised by LMDeploy's AWQ, else None: the format of its weights as they are."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return "awq" if config.get("quantization_config", {}).get("quant_method") == "awq" else None


def engine_config(backend: str, folder: Path, environ: dict[str, str] | None = None) -> Any:
    """LMDeploy's engine configuration for ``backend``.

    Environment: ``HUANHUAN_CONTEXT`` tokens a conversation may have (4096), ``HUANHUAN_SLOTS`` replies at a
    time (16), ``HUANHUAN_KV_CACHE`` share of the free GPU memory for the KV cache (0.8),
    ``HUANHUAN_KV_BITS`` 16, 8 or 4, ``HUANHUAN_TP`` number of GPUs (1).

    Raises: UserError with every variable that is out of range.
    """
    import_lmdeploy()
    from lmdeploy import PytorchEngineConfig, TurbomindEngineConfig

    read = _Settings(os.environ if environ is None else environ)
    common: dict[str, Any] = {
        "session_len": read.whole("HUANHUAN_CONTEXT", 4096, 256, 1_000_000),
        "max_batch_size": read.whole("HUANHUAN_SLOTS", 16, 1, 1024),
        "cache_max_entry_count": read.share("HUANHUAN_KV_CACHE", 0.8),
        "quant_policy": read.whole("HUANHUAN_KV_BITS", 16, 4, 16, (4, 8, 16)) % 16,
        "tp": read.whole("HUANHUAN_TP", 1, 1, 64),
    }
    read.raise_if_any()
    if backend == "turbomind":
        return TurbomindEngineConfig(model_format=model_format(folder), **common)
    return PytorchEngineConfig(**common)


class _Settings:
    """Reads numbers from the environment and collects what is wrong with them."""

    def __init__(self, environ: Any) -> None:
        self._environ, self._problems = environ, []

    def whole(self, name: str, default: int, low: int, high: int, among: Sequence[int] | None = None) -> int:
        text = self._environ.get(name, "").strip()
        if not text:
            return default
        if text.isdecimal() and len(text) < 10 and low <= int(text) <= high and (among is None or int(text) in among):
            return int(text)
        rule = " / ".join(map(str, among)) if among else f"{low} – {high}"
        self._problems.append(f"{name}={text}: 需要整数 / must be a whole number: {rule}")
        return default

    def share(self, name: str, default: float) -> float:
        text = self._environ.get(name, "").strip()
        try:
            value = float(text) if text else default
        except ValueError:
            value = 0.0
        if not 0 < value < 1:
            self._problems.append(f"{name}={text}: 需要 0 到 1 之间的小数 / must lie between 0 and 1")
        return value

    def raise_if_any(self) -> None:
        if self._problems:
            raise UserError(self._problems)


class LMDeployEngine(LoopEngine):
    """LMDeploy's pipeline behind the engine interface."""

    kind = "lmdeploy"

    def __init__(self, folder: Path | str, backend: str | None = None) -> None:
        """Load the model of ``folder``; ``backend`` None asks the environment.

        TurboMind that is missing or does not know the model is replaced by the PyTorch engine with a warning
        in the log and in ``label``.

        Raises: EngineError if LMDeploy cannot load the model.
        """
        super().__init__()
        self.folder = Path(folder)
        self.model = self.folder.name
        wanted = backend or wanted_backend()
        try:
            import_lmdeploy()
            self.fallback = turbomind_problem(self.folder) if wanted == "turbomind" else None
            self.backend = "pytorch" if self.fallback else wanted
            if self.fallback:
                logger.warning("%s: the PyTorch engine answers instead", self.fallback)
            self._pipeline = self._build(engine_config(self.backend, self.folder))
            self.tokenizer: Any = self._pipeline.tokenizer.model.model
            self.stop_ids = stop_ids(self.tokenizer)
        except (UserError, Terminated):
            raise
        except SystemExit as error:
            # How its check of the machine ends.
            raise EngineError(
                "LMDeploy 不能在这台机器上运行，请检查 GPU 与驱动，或换一个 HUANHUAN_ENGINE",
                "LMDeploy cannot run on this machine: check the GPU and its driver, or choose another HUANHUAN_ENGINE",
                error,
            ) from error
        except Exception as error:
            raise EngineError(
                f"LMDeploy 加载不了 {self.folder}，请检查模型文件和显存",
                f"LMDeploy cannot load {self.folder}: check the files and the GPU memory",
                error,
            ) from error
        # What LMDeploy really runs, should it have fallen back for a reason not foreseen above.
        if self._pipeline.backend != self.backend:
            self.fallback = f"LMDeploy chose {self._pipeline.backend} itself"
            self.backend = self._pipeline.backend
            logger.warning("%s instead of %s", self.backend, wanted)
        self.label = "LMDeploy " + ("TurboMind" if self.backend == "turbomind" else "PyTorch")
        if self.fallback:
            self.label += " (TurboMind ✗)"
        self.context_tokens = int(self._pipeline.session_len)
        self.slots = int(self._pipeline.instance_num)
        self.loop = self._pipeline.internal_thread.loop

    def _build(self, config: Any) -> Any:
        from lmdeploy import pipeline

        from huanhuan.chat.lmdeploy_template import chat_template_config

        return pipeline(str(self.folder), backend_config=config, chat_template_config=chat_template_config())

    def count(self, messages: Sequence[Message]) -> int:
        """Exact number of prompt tokens."""
        return len(prompt_ids(self.tokenizer, messages))

    def size(self, message: Message) -> int:
        """Exact number of tokens."""
        return message_size(self.tokenizer, message)

    def generation_config(self, sampling: Sampling) -> Any:
        """``sampling`` in LMDeploy's words. ``do_sample`` is False by default there and mutes the temperature."""
        from lmdeploy import GenerationConfig

        common: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
            "stop_token_ids": self.stop_ids,
            "skip_special_tokens": True,
            "spaces_between_special_tokens": False,
        }
        if sampling.greedy and sampling.repetition_penalty == 1:
            return GenerationConfig(do_sample=False, **common)
        # Not sampling mutes the penalty as well; the single likeliest token after it is greedy too.
        return GenerationConfig(
            do_sample=True,
            temperature=1.0 if sampling.greedy else sampling.temperature,
            top_p=sampling.top_p,
            top_k=1 if sampling.greedy else sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            random_seed=sampling.seed,  # type: ignore[arg-type]
            **common,
        )

    async def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        ids = prompt_ids(self.tokenizer, messages)
        session = next(self._pipeline._session_id)
        reply.begin()
        finish: str | None = None
        generator = self._pipeline.generate(
            messages=None,
            input_ids=ids,
            session_id=session,
            gen_config=self.generation_config(sampling),
            stream_response=True,
            sequence_start=True,
            sequence_end=True,
        )
        writing = asyncio.current_task()
        watcher = asyncio.ensure_future(self._cancel_when_stopped(reply, session, writing))
        try:
            async for out in generator:
                finish = out.finish_reason
                if finish == "error":
                    raise EngineError(
                        "模型内部出错了，请重试",
                        "the model had an internal error: try again",
                        RuntimeError(out.response),
                    )
                reply.add(out.response, out.generate_token_len)
        finally:
            watcher.cancel()
            await generator.aclose()
            # LMDeploy keeps an entry for every session it ever saw.
            self._pipeline.id2step.pop(session, None)
        if reply.stop_requested or reply.done:
            return "stopped"
        if finish is None:
            # LMDeploy swallows exceptions of its workers: the stream just ends.
            raise EngineError("模型中断了，请重试", "the model broke off: try again")
        return "length" if finish == "length" else "stop"

    async def _cancel_when_stopped(self, reply: Reply, session: int, writing: asyncio.Task[Finish] | None) -> None:
        """Cancel the generation in the engine as soon as somebody stops the reply."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        reply.on_stop(lambda: loop.call_soon_threadsafe(stopped.set))
        await stopped.wait()
        if session in self._pipeline.id2inst:
            await self._pipeline.stop_session(session)
        elif writing:
            # Still waiting for a slot: the engine does not know the request yet.
            writing.cancel()

    def _stop(self, writing: asyncio.Future[Finish], reply: Reply) -> None:
        # Cancelled in the engine first, which ends the stream in good order; the task only if that fails.
        self.loop.call_later(STOP_PATIENCE, writing.cancel)

    def running(self) -> int:
        """How many generations hold a slot of the engine now."""
        return len(self._pipeline.id2inst)

    def healthy(self) -> bool:
        """Whether the pipeline's event loop is alive and turns, and the PyTorch engine's own loop still runs."""
        if not self._pipeline.internal_thread.thread.is_alive():
            return False
        # Made with the first request; it ends only with an exception that LMDeploy does not hand on.
        manager = getattr(getattr(self._pipeline, "engine", None), "req_manager", None)
        working = getattr(manager, "_loop_task", None)
        if working is not None and working.done():
            return False
        try:
            call_on(self.loop, lambda: asyncio.sleep(0), 5)
        except Exception:
            return False
        return True

    def close(self, patience: float = 20.0) -> None:
        """Stop every reply and give the GPU memory back; after ``patience`` seconds that is left to the system."""
        closing = threading.Thread(target=self._pipeline.close, name="lmdeploy-close", daemon=True)
        closing.start()
        closing.join(patience)
        if closing.is_alive():
            logger.error("LMDeploy does not end: left behind")
