"""Transformers in this process: a small model on a CPU, or a single GPU without LMDeploy."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from huanhuan.chat.decoding import IncrementalDecoder
from huanhuan.chat.engine import EngineError, Finish, Reply, Sampling, whole_setting
from huanhuan.chat.prompt import message_size, prompt_ids
from huanhuan.chat.runners import ThreadedEngine
from huanhuan.template import Message, stop_ids

logger = logging.getLogger("huanhuan.chat")
# InternLM2's own code calls what this release of Transformers warns about, in the middle of the first reply.
logging.getLogger("transformers.cache_utils").setLevel(logging.ERROR)

# Tokens a conversation may have if HUANHUAN_CONTEXT does not say; the KV cache of more is slow on a CPU.
CONTEXT = 4096


class _Stream(BaseStreamer):
    """Receives each new token from ``generate`` and adds its text to the reply."""

    def __init__(self, reply: Reply, tokenizer: Any, ends: set[int]) -> None:
        self._reply, self._ends = reply, ends
        self._decoder = IncrementalDecoder(tokenizer)
        self._prompt_seen = False
        self.count = 0
        self.last: int | None = None

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, as one tensor, then one token at a time."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.last = int(value.reshape(-1)[-1])
        self.count += 1
        piece = "" if self.last in self._ends else self._decoder.add([self.last])
        self._reply.add(piece, self.count)

    def end(self) -> None:
        """Generation is over; what the decoder held back is said now."""
        self._reply.add(self._decoder.end(), self.count)


class _StopOnRequest(StoppingCriteria):
    """Ends ``generate`` after the token during which somebody asked for it."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        stop = self._reply.stop_requested or self._reply.done
        return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)


class TransformersEngine(ThreadedEngine):
    """One reply at a time; others wait for the lock, and a stopped one leaves the line."""

    kind = "transformers"
    slots = 1

    def __init__(self, folder: Path | str) -> None:
        """Load the model of ``folder``: bf16 on a GPU, fp32 on a CPU.

        ``HUANHUAN_CONTEXT`` (tokens, default 4096) bounds a conversation, and so does what the model was made for.

        Raises: EngineError if the folder does not hold a model that can be loaded; UserError for a wrong setting.
        """
        super().__init__()
        wanted = whole_setting("HUANHUAN_CONTEXT", CONTEXT)
        self.folder = Path(folder)
        self.model = self.folder.name
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.label = f"Transformers ({'GPU' if self.device.type == 'cuda' else 'CPU'})"
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(self.folder), trust_remote_code=True)
            self.stop_ids = stop_ids(self.tokenizer)
            # bf16 on a CPU without its instructions is an order of magnitude slower than fp32.
            dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
            self._model: Any = self._load(dtype).to(self.device).eval()  # type: ignore[arg-type]
        except Exception as error:
            raise EngineError(
                f"加载不了 {self.folder}，请检查模型文件是否完整",
                f"cannot load {self.folder}: check that the model is complete",
                error,
            ) from error
        self.context_tokens = min(wanted, int(getattr(self._model.config, "max_position_embeddings", wanted)))
        self._lock = threading.Lock()
        # The reply that holds the lock and the thread that writes it.
        self._writing: tuple[Reply, threading.Thread] | None = None

    def _load(self, dtype: torch.dtype) -> PreTrainedModel:
        settings: dict[str, Any] = {"trust_remote_code": True, "torch_dtype": dtype, "low_cpu_mem_usage": True}
        try:
            return AutoModelForCausalLM.from_pretrained(str(self.folder), attn_implementation="sdpa", **settings)
        except ValueError:
            # Modelling code that comes with the weights may know eager attention only.
            return AutoModelForCausalLM.from_pretrained(str(self.folder), attn_implementation="eager", **settings)

    def count(self, messages: Sequence[Message]) -> int:
        """Exact number of prompt tokens."""
        return len(prompt_ids(self.tokenizer, messages))

    def size(self, message: Message) -> int:
        """Exact number of tokens."""
        return message_size(self.tokenizer, message)

    def generation_config(self, sampling: Sampling) -> GenerationConfig:
        """``sampling`` in Transformers' words; nothing comes from the model's own generation config."""
        chosen: dict[str, Any] = {"do_sample": False}
        if not sampling.greedy:
            chosen = {
                "do_sample": True,
                # Transformers refuses a whole number here.
                "temperature": float(sampling.temperature),
                "top_p": float(sampling.top_p),
                "top_k": sampling.top_k,
            }
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=float(sampling.repetition_penalty),
            eos_token_id=self.stop_ids,
            bos_token_id=self.tokenizer.bos_token_id,
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            **chosen,
        )

    def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        while not self._lock.acquire(timeout=0.1):
            if reply.stop_requested:
                return "stopped"
        self._writing = reply, threading.current_thread()
        try:
            return self._generate(reply, prompt_ids(self.tokenizer, messages), sampling)
        finally:
            self._writing = None
            self._lock.release()

    def _generate(self, reply: Reply, ids: list[int], sampling: Sampling) -> Finish:
        if self._model is None:
            raise EngineError("引擎已经关闭", "the engine is closed")
        stream = _Stream(reply, self.tokenizer, set(self.stop_ids))
        inputs = torch.tensor([ids], device=self.device)
        reply.begin()
        with torch.inference_mode():
            # One reply at a time holds the lock, so seeding the global generator disturbs nobody.
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=self.generation_config(sampling),
                streamer=stream,
                stopping_criteria=StoppingCriteriaList([_StopOnRequest(reply)]),
            )
        return "stop" if stream.last in self.stop_ids else "length"

    def healthy(self) -> bool:
        """Whether the model is there and the thread that writes, if any, still makes progress."""
        writing = self._writing
        if writing is None:
            return self._model is not None
        reply, thread = writing
        return thread.is_alive() and not reply.overdue

    def close(self, patience: float = 10.0) -> None:
        """Stop the running reply and drop the weights; after ``patience`` seconds they are left to it."""
        if writing := self._writing:
            writing[0].stop()
        if not self._lock.acquire(timeout=patience):
            logger.warning("a reply does not end: the weights are left to it")
            return
        try:
            self._model = None
        finally:
            self._lock.release()
