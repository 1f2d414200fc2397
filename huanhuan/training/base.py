"""Finding the base model without editing a recipe."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from textwrap import shorten

from huanhuan.cli import one_line_errors
from huanhuan.errors import UserError
from huanhuan.paths import MODELS
from huanhuan.training.checkpoints import allow_own_checkpoints

# The same weights under the names of the two hubs, by the name of their folder in models/.
MODELSCOPE_OWNER = "Shanghai_AI_Laboratory"
ENVIRONMENT = "HUANHUAN_BASE"


def find_base(name: str) -> str:
    """A local folder with the base ``name`` (an id such as ``internlm/internlm2-chat-7b``).

    Recipes hand this to XTuner as ``model_resource``. In order: the folder named by the environment variable
    HUANHUAN_BASE, ``models/<last part of name>``, ModelScope, Hugging Face. The log says which.

    From then on torch's restricted loading accepts our own checkpoints, and an error meant for the user ends the
    process in its one line: of all that a recipe names only this runs before ``xtuner train`` does anything.

    Raises: UserError if none of them has it, with what each answered.
    """
    one_line_errors()
    allow_own_checkpoints()
    folder = local_base(name)
    if folder is not None:
        _log(name, ENVIRONMENT if os.environ.get(ENVIRONMENT) else "models/", folder)
        return str(folder)
    owner, _, short = name.rpartition("/")
    answers = []
    if not owner:
        raise UserError(
            f"models/{name}: 没有这个底模 / no such base: run `make base`, or set {ENVIRONMENT} to its folder"
        )
    for hub, download in (("ModelScope", _from_modelscope), ("Hugging Face", _from_hugging_face)):
        try:
            found = download(name, short)
        except Exception as error:  # whatever a hub's client raises, the other is asked next
            answers.append(f"{hub}: {_first_line(error)}")
        else:
            _log(name, hub, found)
            return found
    raise UserError(
        f"{name}: 找不到底模 / base not found ({'; '.join(answers)}): "
        f"联网重试，或放到 models/{short}，或设 {ENVIRONMENT} / go online, put it into models/{short} or set {ENVIRONMENT}"
    )


def local_base(name: str) -> Path | None:
    """The folder of ``name`` on this machine, or None; nothing is downloaded.

    Raises: UserError if HUANHUAN_BASE or ``models/<name>`` is there but holds no model.
    """
    named = os.environ.get(ENVIRONMENT)
    folder = Path(named).expanduser() if named else MODELS / name.rpartition("/")[2]
    if named or folder.is_dir():
        if not (folder / "config.json").is_file():
            source = ENVIRONMENT if named else "models/"
            raise UserError(
                f"{folder}: 没有 config.json / has no config.json ({source}): 指向完整的模型目录 / name a complete model folder"
            )
        return folder.resolve()
    return None


def _from_modelscope(name: str, short: str) -> str:
    from modelscope import snapshot_download

    owner = MODELSCOPE_OWNER if name.startswith("internlm/") else name.rpartition("/")[0]
    # It warns of every attempt; what came of the last one is in the error.
    logger = logging.getLogger("modelscope_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return str(snapshot_download(f"{owner}/{short}"))
    finally:
        logger.setLevel(level)


def _from_hugging_face(name: str, short: str) -> str:
    from huggingface_hub import snapshot_download

    return str(snapshot_download(name))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + shorten(lines[0], 90, placeholder=' …') if lines else ''}"


def _log(name: str, source: str, folder: Path | str) -> None:
    from mmengine.logging import print_log

    print_log(f"底模 / base {name}: {source}: {folder}", "current", logging.INFO)
