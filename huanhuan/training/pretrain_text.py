"""What the tiny base may read before it is tuned: the training scenes with the character's lines left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huanhuan.dataset.jsonlines import numbered_lines, parse
from huanhuan.dataset.validate import validate_file
from huanhuan.errors import Problems, UserError, os_error_line
from huanhuan.persona import Persona
from huanhuan.template import record_messages
from huanhuan.text.labels import Speakers, name_key
from huanhuan.text.model import Scene
from huanhuan.text.reader import read_script
from huanhuan.text.sources import find_files

CONVERT = "python tools/dialogue_to_jsonl.py"


@dataclass(frozen=True)
class BaseTexts:
    """``scenes``: one document per training scene, for pretraining; ``vocabulary``: what the tokenizer learns from."""

    scenes: tuple[str, ...]
    vocabulary: tuple[str, ...]


def read_base_texts(script: Iterable[Path], data: Path, persona: Persona, card: Path) -> BaseTexts:
    """The texts for a tiny base from a script and the training files that were made of it.

    Which scenes are held out is read from ``val.jsonl`` in ``data``, so pretraining cannot see one whatever
    options the conversion had. The tokenizer also learns from the records of ``train.jsonl``: a character that
    only the replies have should still be one token. ``card`` is the persona's file, which identity records name
    as their source.

    Raises: UserError if a file is missing or faulty, nobody speaks in the script, or the training files do not belong
    to it.
    """
    train = _records(data / "train.jsonl")
    held_out = _records(data / "val.jsonl")
    files = find_files(script)
    speakers = Speakers(persona.names)
    scripts = [read_script(file, speakers) for file in files]
    if not any(each.scenes for each in scripts):
        places = ", ".join(f"{each.file} ({each.lines} 行 / lines)" for each in scripts)
        raise UserError(
            f"{places[:200]}: 剧本是空的，没有人说话 / the script is empty, nobody speaks in it: 检查 --script / check --script"
        )
    problems = Problems()
    names = {file.name for file in files}
    train_lines = _source_lines(train, data / "train.jsonl", names, card.name, problems)
    held_out_lines = _source_lines(held_out, data / "val.jsonl", names, card.name, problems)
    problems.raise_if_any()
    scenes = [
        others_lines(scene, persona.names)
        for each in scripts
        for scene in each.scenes
        if _holds(scene, train_lines[each.file]) and not _holds(scene, held_out_lines[each.file])
    ]
    scenes = [scene for scene in scenes if scene]
    if not scenes:
        raise UserError(f"{data}: 没有一场训练用的戏 / no training scene found in the script: run {CONVERT} again")
    said = [message["content"] for _, record in train for message in record_messages(record)]
    return BaseTexts(tuple(scenes), (*scenes, *said))


def others_lines(scene: Scene, names: Sequence[str]) -> str:
    """What everybody but the character says in ``scene``, a line each; a line she speaks with others is hers."""
    hers = {name_key(name) for name in names}
    return "\n".join(
        speech.text for speech in scene.speeches if not any(name_key(speaker) in hers for speaker in speech.speakers)
    )


def _holds(scene: Scene, lines: Sequence[int]) -> bool:
    return any(scene.first <= line <= scene.last for line in lines)


def _records(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The records of a training file and their lines; none of an empty one, which a script too short to split has.

    Raises: UserError with every problem of the file.
    """
    try:
        empty = not file.read_bytes().strip()
    except FileNotFoundError:
        raise UserError(f"{file}: 还没有训练数据 / no training file yet: run {CONVERT} first") from None
    except OSError as error:
        raise UserError(os_error_line(file, error, "请检查路径和权限 / check the path and its permissions")) from None
    if empty:
        return []
    validate_file(file).raise_if_errors()
    with file.open("rb") as lines:
        return [(number, parse(line)) for number, line in numbered_lines(lines)]


def _source_lines(
    records: Sequence[tuple[int, dict[str, Any]]], path: Path, names: set[str], card: str, problems: Problems
) -> dict[str, list[int]]:
    """For each file of the script the lines where the records of ``path`` begin and end."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number, record in records:
        source = record.get("source")
        file, lines = (source.get("file"), source.get("lines")) if isinstance(source, dict) else (None, None)
        if not isinstance(file, str) or not isinstance(lines, list) or not all(type(line) is int for line in lines):
            problems.add(
                f'{path}:{number}: [source] 没有写明来源 / does not say where it comes from, {{"file": …, "lines": […]}}: '
                f"run {CONVERT} again"
            )
        elif file in names:
            found[file] += lines
        elif file != card:
            problems.add(
                f"{path}:{number}: 来源 / source {file}: 不在这份剧本里 / is not in this script: run {CONVERT} again"
            )
    return found
