"""DeepSpeed checkpoints: a folder with a piece of every tensor per process."""

from __future__ import annotations

import contextlib
import io
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from huanhuan.errors import UserError
from huanhuan.export.weights import LazyTensor


def load_zero_folder(folder: Path) -> dict[str, Any]:
    """``{"state_dict": …, "meta": …}`` of a ZeRO-1, 2 or 3 checkpoint folder, tensors in fp32 and lazy.

    DeepSpeed's own converter does the joining; its reader is replaced by one that executes nothing.

    Raises: UserError if DeepSpeed is not installed or the folder holds no DeepSpeed checkpoint.
    """
    if not any(folder.glob("*_optim_states.pt")):
        raise UserError(
            f"{folder}: 不是检查点目录 / not a checkpoint folder (no *_optim_states.pt): check --checkpoint"
        )
    try:
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils import zero_to_fp32
    except ImportError:
        raise UserError(
            f"{folder}: 读 ZeRO 检查点需要 deepspeed / needs deepspeed: pip install -r requirements-train.txt"
        ) from None
    from huanhuan.export.checkpoint import load_untrusted

    known = {"deepspeed.runtime.zero.config.ZeroStageEnum": ZeroStageEnum}
    loaded: list[Mapping[str, Any]] = []

    def load(file: str, **_: Any) -> Any:
        loaded.append(load_untrusted(Path(file), known))
        return loaded[-1]

    class SafeTorch(types.ModuleType):
        """``torch`` as the converter sees it, with a reader that executes nothing."""

        def __getattr__(self, name: str) -> Any:
            return load if name == "load" else getattr(torch, name)

    original = zero_to_fp32.torch
    zero_to_fp32.torch = SafeTorch("torch")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        # The converter prints what it does and draws bars of its own.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            joined: Any = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(
                str(folder.parent), tag=folder.name, exclude_frozen_parameters=False, lazy_mode=True
            )
    finally:
        zero_to_fp32.torch = original
    state = {name: _lazy(tensor) for name, tensor in joined.items()}
    meta = next((each["meta"] for each in loaded if isinstance(each.get("meta"), Mapping)), {})
    return {"state_dict": state, "meta": meta}


def _lazy(tensor: Any) -> LazyTensor:
    # Stage 2 gives views of the flat buffer, stage 3 an object that gathers the pieces when asked.
    return LazyTensor(tuple(tensor.shape), torch.float32, lambda: tensor.contiguous().detach())
