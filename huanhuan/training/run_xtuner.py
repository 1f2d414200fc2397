"""XTuner's own training script in this process, with one-line errors and without a GPU where there is none.

python -m huanhuan.training.run_xtuner RECIPE [the options of `xtuner train`]
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huanhuan.cli import error_lines
from huanhuan.errors import UserError
from huanhuan.files import write_text

# Exit code of a process that has said what is wrong, so that whoever started it need not say it again.
TOLD = 3
# Set by --debug: errors end in their traceback.
DEBUG = "HUANHUAN_DEBUG"
TRACEBACK = "调用栈见 / traceback in"


def main() -> None:
    """Run ``xtuner.tools.train`` on this process's arguments; after an error one line and the exit code TOLD."""
    try:
        _train()
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:  # the last place where the traceback of any of them can be kept
        if os.environ.get(DEBUG):
            raise
        tell(lines_of(error, _work_dir()))
        # Other processes of the run may be waiting for this one in a collective: do not clean up, go.
        os._exit(TOLD)


def _train() -> None:
    import torch
    from xtuner.tools import train

    from huanhuan.training.checkpoints import allow_own_checkpoints

    allow_own_checkpoints()
    if not torch.cuda.is_available():
        _train_without_gpu(train)
    train.main()


def lines_of(error: Exception, work_dir: Path | None = None) -> list[str]:
    """What the user reads of an error; the traceback of one that nobody foresaw goes to a file that is named.

    The file lies in ``work_dir``, or in the system's temporary folder before there is one.
    """
    if isinstance(error, UserError):
        return error.problems
    text = " ".join(str(error).split()) or "no message"
    kind = type(error).__name__
    if kind == "OutOfMemoryError":
        advice = (
            "显存不足，python tools/plan.py 说明什么放得下 / the GPU's memory is full: see python tools/plan.py RECIPE"
        )
        reason = f"{kind}: {text[:160]}: {advice}"
    elif isinstance(error, pickle.UnpicklingError):
        # torch's own text begins by advising to load without restriction.
        refused = text.rpartition("WeightsUnpickler error:")[2].strip()[:160]
        reason = (
            f"检查点里有别的对象，没有读取 / not loaded, the checkpoint holds what no recipe of ours writes ({refused}): "
            "使用自己训练的检查点 / use one that you trained yourself"
        )
    else:
        reason = error_lines(error)[0] if isinstance(error, OSError) else f"{kind}: {text[:400]}"
    return [f"{reason} ({TRACEBACK} {_keep_traceback(error, work_dir)})"]


def _keep_traceback(error: Exception, work_dir: Path | None) -> str:
    folder = work_dir if work_dir is not None and work_dir.is_dir() else None
    content = "".join(traceback.format_exception(error))
    for place in (folder, None):  # the disk of the work dir may be what is full
        try:
            handle, name = tempfile.mkstemp(prefix="error-", suffix=".log", dir=place)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
        except OSError:
            continue
        return name
    return "--debug"


def tell(lines: list[str]) -> None:
    """Print the lines of an error, or leave them to torchrun, which has several processes to listen to."""
    sys.stdout.flush()
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:
        write_text(Path(report), json.dumps({"message": "\n".join(lines), "timestamp": int(time.time())}))
        return
    for line in lines:
        print(f"错误 / error: {line}", file=sys.stderr, flush=True)


def _work_dir() -> Path | None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--work-dir", type=Path)
    return parser.parse_known_args()[0].work_dir


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
