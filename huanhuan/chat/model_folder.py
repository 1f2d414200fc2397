"""Which model the chat loads when it runs one in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from huanhuan.chat.arrival import Report, fetched, hubs, is_id, models_folder, silent
from huanhuan.errors import UserError
from huanhuan.paths import MODELS, in_checkout
from huanhuan.weight_files import indexed_files, safetensors_damage

TRAINED, DEMO = "huanhuan", "huanhuan-demo"
# The Chat-嬛嬛 that its authors published on ModelScope.
PUBLISHED = "kmno4zx/huanhuan-chat-internlm2"


class NoModel(UserError):
    """No model is here; the lines say the ways to go on."""

    def __init__(self, models: Path = MODELS) -> None:
        super().__init__(
            [
                f"{models}: 还没有模型，三种办法任选 / no model yet, three ways to go on:",
                "make character：在本机训练一个小的演示角色 / train a small demo character on this machine",
                "HUANHUAN_MODEL=目录或模型名：使用已有的模型 / use a model: a folder, or a ModelScope or Hugging Face id",
                "HUANHUAN_API_BASE=网址：连接已启动的模型服务 / use a running OpenAI-compatible server",
            ]
        )


def model_folder(
    wanted: str | None = None,
    environ: Mapping[str, str] = os.environ,
    models: Path = MODELS,
    *,
    gpu: bool = False,
    report: Report = silent,
) -> Path:
    """The folder of the model to load, fetched first if need be.

    ``wanted``, else ``HUANHUAN_MODEL``: a folder, or a ModelScope or Hugging Face id. With neither:
    ``models/huanhuan``; on a ``gpu`` the published Chat-嬛嬛; ``models/huanhuan-demo``.

    Raises: NoModel if nothing is set and nothing is there; UserError if the named model is none or does not
    arrive.
    """
    named = (wanted or environ.get("HUANHUAN_MODEL", "")).strip()
    if named:
        folder = Path(named).expanduser()
        if not folder.exists():
            folder = in_checkout(named)
        if not folder.exists() and is_id(named):
            return checked(fetched(named, hubs(environ), models_folder(environ), report))
        return checked(folder)
    if (models / TRAINED / "config.json").is_file():
        return checked(models / TRAINED)
    if gpu:
        return checked(fetched(PUBLISHED, hubs(environ), models_folder(environ), report))
    if (models / DEMO / "config.json").is_file():
        return checked(models / DEMO)
    raise NoModel(models)


def checked(folder: Path) -> Path:
    """``folder`` if it holds a configuration, whole weights and a tokenizer, as far as that is quick to tell.

    Raises: UserError with everything that is missing or cut short.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: 找不到模型目录 / no such model folder: check HUANHUAN_MODEL or --model")
    wanted = {
        "config.json": ["config.json"],
        "*.safetensors / *.bin": ["*.safetensors", "*.bin"],
        "tokenizer": ["tokenizer.model", "tokenizer.json"],
    }
    missing = [name for name, patterns in wanted.items() if not any(any(folder.glob(each)) for each in patterns)]
    missing += _missing_shards(folder)
    problems = []
    if missing:
        named = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        problems.append(f"{folder}: 缺少 {named}，不是完整的模型 / is not a complete model: merge or download it again")
    problems += [
        f"{path}: 文件不完整 / is damaged or cut short: merge or download it again"
        for path in sorted(folder.glob("*.safetensors"))
        if safetensors_damage(path)
    ]
    if problems:
        raise UserError(problems)
    return folder


def _missing_shards(folder: Path) -> list[str]:
    """The weight files that an index names and the folder lacks; the first index there is counts, as in Transformers."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        if (folder / whole).is_file():
            return []
        if index.is_file():
            try:
                named = indexed_files(index)
            except (OSError, ValueError):
                return [index.name]
            return [name for name in named if not (folder / name).is_file()]
    return []
