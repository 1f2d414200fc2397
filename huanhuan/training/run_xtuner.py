"""XTuner's own training script in this process, with one-line errors and without a GPU where there is none.

python -m huanhuan.training.run_xtuner RECIPE [the options of `xtuner train`]
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Run ``xtuner.tools.train`` on this process's arguments; exit code 1 after an error."""
    import torch
    from xtuner.tools import train

    from huanhuan.cli import error_lines
    from huanhuan.errors import UserError

    if not torch.cuda.is_available():
        _train_without_gpu(train)
    try:
        train.main()
    except UserError as error:
        if os.environ.get("HUANHUAN_DEBUG"):
            raise
        for line in error_lines(error):
            print(f"错误 / error: {line}", file=sys.stderr, flush=True)
        # Other processes of the run may be waiting for this one in a collective: do not clean up, go.
        os._exit(1)


def _train_without_gpu(train: Any) -> None:
    """Let XTuner, mmengine and DeepSpeed train on CPUs, several processes included."""
    import torch

    # mmengine's launcher calls this for every backend, gloo included.
    torch.cuda.set_device = lambda device: None
    # Processes on a CPU talk over gloo and own no device. The option, given twice, adds up.
    sys.argv += ["--cfg-options", "env_cfg.dist_cfg.backend=gloo", "model_wrapper_cfg.device_ids=None"]
    # XTuner asks torch.cpu whether it has bfloat16, which is no function of it; the recipe's dtype stays as it is.
    train.auto_dtype_of_deepspeed_config = _keep_dtype
    if "--deepspeed" in sys.argv:
        # Its own collectives over shared memory have to be compiled first, by a compiler that may not be there.
        # (deepspeed.comm.torch as an attribute is torch itself.)
        collectives: Any = importlib.import_module("deepspeed.comm.torch")
        collectives.build_shm_op = lambda: None
    # gloo writes into what it gathers, which autograd forbids for the leaves and views that DeepSpeed hands it.
    for name in ("all_gather_into_tensor", "all_gather"):
        setattr(torch.distributed, name, _on_detached(getattr(torch.distributed, name)))


def _keep_dtype(settings: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's settings with its own mixed precision switched off."""
    return settings | {"fp16": {"enabled": False}, "bf16": {"enabled": False}}


def _on_detached(collective: Callable[..., Any]) -> Callable[..., Any]:
    """``collective`` on tensors that share the memory of those given and are no part of a graph."""
    import torch

    def detached(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach()
        return [each.detach() for each in value] if isinstance(value, list) else value

    @functools.wraps(collective)
    def call(*values: Any, **options: Any) -> Any:
        return collective(*map(detached, values), **{name: detached(value) for name, value in options.items()})

    return call


if __name__ == "__main__":
    main()
