"""Which model the chat loads when it runs one in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from huanhuan.errors import UserError
from huanhuan.paths import MODELS, in_checkout

DEFAULTS = ("huanhuan", "huanhuan-demo")


class NoModel(UserError):
    """No model is here; the lines say the ways to go on."""

    def __init__(self, models: Path = MODELS) -> None:
        super().__init__(
            [
                f"{models}: 还没有模型，三种办法任选 / no model yet, three ways to go on:",
                "make character：在本机训练一个小的演示角色 / train a small demo character on this machine",
                "HUANHUAN_MODEL=目录：使用已合并的模型 / use a merged model: the folder that tools/merge_hf.py wrote",
                "HUANHUAN_API_BASE=网址：连接已启动的模型服务 / use a running OpenAI-compatible server",
            ]
        )


def model_folder(wanted: str | None = None, environ: Mapping[str, str] = os.environ, models: Path = MODELS) -> Path:
    """``wanted``, else the folder that ``HUANHUAN_MODEL`` names, else ``models/huanhuan`` or the demo's.

    Raises: NoModel if nothing is set and nothing is there; UserError if the named folder is no model.
    """
    named = (wanted or environ.get("HUANHUAN_MODEL", "")).strip()
    if named:
        folder = Path(named).expanduser()
        return checked(folder if folder.exists() else in_checkout(named))
    for name in DEFAULTS:
        if (models / name / "config.json").is_file():
            return checked(models / name)
    raise NoModel(models)


def checked(folder: Path) -> Path:
    """``folder`` if it holds a configuration, weights and a tokenizer.

    Raises: UserError with everything that is missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: 找不到模型目录 / no such model folder: check HUANHUAN_MODEL or --model")
    wanted = {
        "config.json": ["config.json"],
        "*.safetensors / *.bin": ["*.safetensors", "*.bin"],
        "tokenizer": ["tokenizer.model", "tokenizer.json"],
    }
    missing = [name for name, patterns in wanted.items() if not any(any(folder.glob(each)) for each in patterns)]
    if missing:
        raise UserError(
            f"{folder}: 缺少 {', '.join(missing)}，不是完整的模型 / is not a complete model: merge or download it again"
        )
    return folder
