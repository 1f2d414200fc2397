"""Which engine answers: what the environment says, else what the machine has.

Importing this loads neither torch nor LMDeploy; building an engine does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from huanhuan.chat.arrival import Report, silent
from huanhuan.chat.engine import Engine, EngineError
from huanhuan.chat.model_folder import model_folder
from huanhuan.cli import Terminated
from huanhuan.errors import UserError

Kind = Literal["lmdeploy", "openai", "transformers"]
KINDS: tuple[Kind, ...] = ("lmdeploy", "openai", "transformers")


def choose(environ: Mapping[str, str] = os.environ) -> Kind:
    """``HUANHUAN_ENGINE``; else a server if ``HUANHUAN_API_BASE`` is set; else LMDeploy on a GPU, Transformers without.

    Raises: UserError for an engine that does not exist.
    """
    named = environ.get("HUANHUAN_ENGINE", "").strip().lower()
    if named:
        for kind in KINDS:
            if named == kind:
                return kind
        raise UserError(f"HUANHUAN_ENGINE={named}: 没有这个引擎 / no such engine: use one of {', '.join(KINDS)}")
    if environ.get("HUANHUAN_API_BASE", "").strip():
        return "openai"
    return "lmdeploy" if has_cuda() else "transformers"


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def is_url(text: str) -> bool:
    """Whether ``text`` names a web server.

    >>> is_url("http://host:23333/v1"), is_url("host:23333/v1"), is_url("http://")
    (True, False, False)
    """
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def build(model: str | None = None, environ: Mapping[str, str] = os.environ, report: Report = silent) -> Engine:
    """The engine of :func:`choose`, ready to answer; takes as long as the model takes to arrive and to load.

    ``model`` is a folder or a hub's id, or the model's name for a server; ``report`` hears how far it is.

    Raises: UserError if no model is found or the engine cannot start.
    """
    try:
        return _build(choose(environ), model, environ, report)
    except Terminated:
        raise
    except SystemExit as error:
        # Libraries that check the machine end the process; here they end a start that can be tried again.
        raise EngineError(
            "引擎不能在这台机器上运行，请检查 GPU 与驱动",
            "the engine cannot run on this machine: check the GPU and its driver",
            error,
        ) from error


def _build(kind: Kind, model: str | None, environ: Mapping[str, str], report: Report) -> Engine:
    if kind == "openai":
        url = environ.get("HUANHUAN_API_BASE", "").strip()
        if not url:
            raise UserError("HUANHUAN_API_BASE: 没有设置服务器网址 / is not set: give the server's URL, ending in /v1")
        if not is_url(url):
            raise UserError(
                f"HUANHUAN_API_BASE={url}: 不是网址 / is no URL: give one such as http://127.0.0.1:23333/v1"
            )
        from huanhuan.chat.openai_engine import OpenAIEngine

        return OpenAIEngine(url, environ.get("HUANHUAN_API_KEY"), model or environ.get("HUANHUAN_API_MODEL"))
    folder = model_folder(model, environ, gpu=has_cuda(), report=report)
    report(f"加载 / loading {folder.name}", None)
    if kind == "lmdeploy":
        from huanhuan.chat.lmdeploy_engine import LMDeployEngine

        return LMDeployEngine(folder)
    from huanhuan.chat.transformers_engine import TransformersEngine

    return TransformersEngine(folder)
