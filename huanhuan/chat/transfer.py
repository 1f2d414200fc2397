"""A conversation as a file: Markdown to read, JSON to read and to come back."""

from __future__ import annotations

import json
from typing import Any

from huanhuan.chat.conversation import Conversation, Turn, Version
from huanhuan.errors import UserError
from huanhuan.template import clean

FORMAT = "huanhuan-conversation"
NOTICE = "角色的话由人工智能生成，并非真人所说 / the character's words are AI-generated"
MOST_BYTES = 2 * 1024 * 1024
MOST_TURNS = 2000
MOST_VERSIONS = 20
MOST_LETTERS = 20_000


def to_markdown(conversation: Conversation, name: str, model: str) -> str:
    """The chosen versions as Markdown quotations, under the AI-generated label."""
    lines = [f"# {name}：{conversation.title}", "", f"> {NOTICE}", f"> {model}", ""]
    for turn in conversation.turns:
        speaker = name if turn.role == "assistant" else "你"
        lines += [f"**{speaker}**", "", *(f"> {line}" for line in turn.text.splitlines() or [""]), ""]
    return "\n".join(lines)


def to_json(conversation: Conversation, name: str, system: str) -> str:
    """Everything, every version included, marked as AI-generated."""
    return json.dumps(
        {
            "format": FORMAT,
            "version": 1,
            "ai_generated": True,
            "notice": NOTICE,
            "character": name,
            "system": system,
            "persona": conversation.persona,
            "title": conversation.title,
            "turns": [
                {
                    "role": turn.role,
                    "chosen": turn.chosen,
                    "versions": [
                        {"text": each.text, "finish": each.finish, "model": each.model} for each in turn.versions
                    ],
                }
                for turn in conversation.turns
            ],
        },
        ensure_ascii=False,
        indent=2,
    )


def from_json(content: bytes) -> Conversation:
    """The conversation of an exported file; control tokens are removed from every text.

    Raises: UserError with everything that is wrong with the file, at most five lines.
    """
    if len(content) > MOST_BYTES:
        raise UserError("对话文件太大，上限 2 MB / the file is too large: 2 MB at most")
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise UserError("不是 JSON 文件 / not a JSON file: choose one that this page exported") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT or not isinstance(value.get("turns"), list):
        raise UserError("不是本页导出的对话 / not a conversation of this page: choose one that it exported")
    problems: list[str] = []
    if len(value["turns"]) > MOST_TURNS:
        problems.append(f"对话超过 {MOST_TURNS} 条 / more than {MOST_TURNS} turns")
    turns = [_turn(each, number, problems) for number, each in enumerate(value["turns"][:MOST_TURNS], 1)]
    if problems:
        raise UserError(problems[:5])
    title, persona = value.get("title"), value.get("persona")
    return Conversation(
        persona=persona if isinstance(persona, str) else "",
        title=clean(title)[:40] if isinstance(title, str) else "",
        turns=[turn for turn in turns if turn],
    )


def _turn(value: Any, number: int, problems: list[str]) -> Turn | None:
    where = f"turns[{number}]"
    expected = "user" if number % 2 else "assistant"
    if not isinstance(value, dict) or value.get("role") != expected:
        problems.append(f"{where}: role 应为 {expected} / must be {expected}")
        return None
    versions = value.get("versions")
    if not isinstance(versions, list) or not 1 <= len(versions) <= MOST_VERSIONS:
        problems.append(f"{where}: versions 应有 1–{MOST_VERSIONS} 个 / must hold 1 to {MOST_VERSIONS}")
        return None
    texts = [each["text"] for each in versions if isinstance(each, dict) and isinstance(each.get("text"), str)]
    if len(texts) < len(versions) or any(len(text) > MOST_LETTERS for text in texts):
        problems.append(f"{where}: text 应为不超过 {MOST_LETTERS} 字的文字 / must be text of at most {MOST_LETTERS}")
        return None
    chosen = value.get("chosen", 0)
    if not isinstance(chosen, int) or isinstance(chosen, bool) or not 0 <= chosen < len(versions):
        problems.append(f"{where}: chosen 超出范围 / is out of range")
        return None
    return Turn(
        expected, [Version(clean(text), _finish(each)) for text, each in zip(texts, versions, strict=True)], chosen
    )  # type: ignore[arg-type]


def _finish(version: dict[str, Any]) -> str:
    finish = version.get("finish")
    return finish if finish in ("stop", "length", "stopped", "error") else "stop"
