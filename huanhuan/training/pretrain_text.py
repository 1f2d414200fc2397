"""What the tiny base may read before it is tuned: the training scenes with the character's lines left out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huanhuan.errors import Problems, UserError
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

    Raises: UserError if a file is missing or the training files do not belong to the script.
    """
    train = _records(data / "train.jsonl")
    held_out = _records(data / "val.jsonl")
    problems = Problems()
    files = find_files(script)
    names = {file.name for file in files}
    train_lines = _source_lines(train, data / "train.jsonl", names, card.name, problems)
    held_out_lines = _source_lines(held_out, data / "val.jsonl", names, card.name, problems)
    problems.raise_if_any()
    speakers = Speakers(persona.names)
    scenes: list[str] = []
    for file in files:
        scenes += [
            others_lines(scene, persona.names)
            for scene in read_script(file, speakers).scenes
            if _holds(scene, train_lines[file.name]) and not _holds(scene, held_out_lines[file.name])
        ]
    scenes = [scene for scene in scenes if scene]
    if not scenes:
        raise UserError(f"{data}: 没有一场训练用的戏 / no training scene found in the script: run {CONVERT} again")
    said = [message["content"] for record in train for message in record_messages(record)]
    return BaseTexts(tuple(scenes), (*scenes, *said))


def others_lines(scene: Scene, names: Sequence[str]) -> str:
    """What everybody but the character says in ``scene``, a line each; a line she speaks with others is hers."""
    hers = {name_key(name) for name in names}
    return "\n".join(
        speech.text for speech in scene.speeches if not any(name_key(speaker) in hers for speaker in speech.speakers)
    )


def _holds(scene: Scene, lines: Sequence[int]) -> bool:
    return any(scene.first <= line <= scene.last for line in lines)


def _records(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: 还没有训练数据 / no training file yet: run {CONVERT} first") from None
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{number}: 不是 JSON / not JSON: {error.msg}: run {CONVERT} again") from None
    return records


def _source_lines(
    records: Sequence[dict[str, Any]], path: Path, names: set[str], card: str, problems: Problems
) -> dict[str, list[int]]:
    """For each file of the script the lines where the records of ``path`` begin and end."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number, file, lines in _sources(records):
        if file in names:
            found[file] += lines
        elif file != card:
            problems.add(
                f"{path}:{number}: 来源 / source {file or '?'}: 不在这份剧本里 / is not in this script: run {CONVERT} again"
            )
    return found


def _sources(records: Iterable[dict[str, Any]]) -> Iterator[tuple[int, str, list[int]]]:
    for number, record in enumerate(records, 1):
        source = record.get("source") or {}
        yield number, source.get("file", ""), list(source.get("lines", ()))
