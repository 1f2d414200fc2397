"""What ``tools/check_data.py`` tells about training files: sound or not, and how much they hold."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huanhuan.dataset.formats import Imported, read_file
from huanhuan.dataset.jsonlines import numbered_lines, parse
from huanhuan.dataset.validate import CONVERT_ADVICE, Validation, shared_records, validate_file, validate_records
from huanhuan.errors import UserError

NAMES = {"openai": "OpenAI messages", "sharegpt": "ShareGPT", "alpaca": "Alpaca", "xtuner": "XTuner"}


@dataclass(frozen=True)
class Checked:
    """One file: its validation, and what reading it in another format merged and left out."""

    validation: Validation
    imported: Imported | None = None

    def record(self, number: int) -> dict[str, Any]:
        """Record ``number``, 1-based, in the training format.

        Raises: UserError if the file has fewer.
        """
        path = self.validation.path
        if number >= 1:
            if self.imported:
                if number <= len(self.imported.conversations):
                    return self.imported.conversations[number - 1].to_json()
            else:
                with path.open("rb") as file:
                    for count, (_, line) in enumerate(numbered_lines(file), 1):
                        if count == number:
                            return parse(line)
        held = self.validation.records
        raise UserError(f"{path}: 没有第 {number} 条 / has no record {number}: 共 {held} 条 / choose 1 to {held}")


def check_files(paths: Iterable[Path], *, system: str | None = None) -> list[Checked]:
    """Check training files, in the training format or one that the converter reads.

    ``system``: the persona's system prompt, which every record must have. Problems are in the results; nothing is
    raised for a bad file.
    """
    checked = [_check(path, system) for path in paths]
    warnings = shared_records(each.validation for each in checked)
    for each in checked:
        each.validation.warnings += [warning for warning in warnings if warning.startswith(f"{each.validation.path}:")]
    return checked


def summary(checked: Checked) -> list[str]:
    """Lines that say what a file holds; none of one in which no record was found.

    >>> summary(Checked(Validation(Path("train.jsonl"), records=2, exchanges=4, prompt_characters=40,
    ...     reply_characters=60, longest=70)))  # doctest: +NORMALIZE_WHITESPACE
    ['train.jsonl: 2 条对话，4 个来回 / 2 records, 4 exchanges (2.0 per record); 提问平均 10.0 字，回答 15.0 字，最长一条 70 字 /
    prompts 10.0 characters on average, replies 15.0, longest record 70']
    """
    result = checked.validation
    if not result.records:
        return []
    exchanges = max(1, result.exchanges)
    prompt, reply = result.prompt_characters / exchanges, result.reply_characters / exchanges
    lines = [
        f"{result.path}: {result.records} 条对话，{result.exchanges} 个来回 / {result.records} records, "
        f"{result.exchanges} exchanges ({result.exchanges / max(1, result.records):.1f} per record); "
        f"提问平均 {prompt:.1f} 字，回答 {reply:.1f} 字，最长一条 {result.longest} 字 / "
        f"prompts {prompt:.1f} characters on average, replies {reply:.1f}, longest record {result.longest}"
    ]
    if result.systems:
        prompt_text = result.systems.most_common(1)[0][0]
        lines.append(f"  系统提示 / system prompt: {_shortened(prompt_text) or '无 / none'}")
    if result.sources:
        lines.append(f"  {result.sources} 条注明出处 / {result.sources} records name their source")
    if checked.imported:
        formats = "、".join(f"{NAMES[name]} {count}" for name, count in checked.imported.formats.items())
        lines.append(f"  格式 / format: {formats}")
    return lines


def _check(path: Path, system: str | None) -> Checked:
    if not _other_format(path):
        return Checked(validate_file(path, system=system))
    try:
        imported = read_file(path)
    except UserError as error:
        return Checked(Validation(path, errors=error.problems))
    result = validate_records(path, imported.conversations, imported.lines, system=system)
    result.sources = 0
    skipped = {
        "no_prompt": "开头没有提问的回答 / replies before any prompt",
        "not_prompt": "结尾没有回答的提问 / prompts without a reply",
    }
    for reason, what in skipped.items():
        lines = [each.line for each in imported.skipped if each.reason == reason]
        if lines:
            result.warnings.append(
                f"{path}:{lines[0]}: {len(lines)} 处{what} ({len(lines)}): 不会用于训练 / will not be trained on"
            )
    if imported.merged:
        result.warnings.append(
            f"{path}: {imported.merged} 条消息与同一角色的上一条合并 / {imported.merged} messages are joined to the one "
            "before them, said by the same role: 核对 / check them"
        )
    if imported.unmasked:
        result.warnings.append(
            f"{path}: {imported.unmasked} 条标为不训练的回答仍会被训练 / {imported.unmasked} replies marked as not to be "
            "learned will be: 不想训练就删去 / remove them if they must not"
        )
    result.warnings.append(
        f"{path}: 训练只读 XTuner 格式的 JSON lines / training reads JSON lines in XTuner's format only: {CONVERT_ADVICE}"
    )
    return Checked(result, imported)


def _other_format(path: Path) -> bool:
    """Whether the first record of a file shows another format than the training format."""
    try:
        with path.open("rb") as file:
            line = next(numbered_lines(file), (0, b""))[1]
            if line.startswith(b"[") or line == b"{":
                return True
            record = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "conversation" not in record and bool(_FOREIGN_KEYS & record.keys())


_FOREIGN_KEYS = {"messages", "conversations", "instruction"}


def _shortened(text: str, length: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}…"
