"""A conversation as a file: Markdown to read, JSON to read and to come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from huanhuan.chat.cards import Card, parse_card, tidy, write_card
from huanhuan.chat.conversation import (
    MOST_REPLY,
    MOST_TURNS,
    MOST_VERSIONS,
    MOST_WEIGHT,
    Conversation,
    Turn,
    Version,
)
from huanhuan.chat.safe_text import plain_markdown, safe_markdown
from huanhuan.errors import UserError

FORMAT = "huanhuan-conversation"
NOTICE = "角色的话由人工智能生成，并非真人所说 / the character's words are AI-generated"
# What the bounds of a conversation and of a card can come to, with room to spare.
MOST_BYTES = 4 * 1024 * 1024
FINISHES = ("stop", "length", "stopped", "cut", "error", "edited")
_LABELS = {
    "zh": {"you": "你", "title": "{name}：{title}", "edited": "（由访客改写）"},
    "en": {"you": "You", "title": "{name}: {title}", "edited": " (rewritten by the visitor)"},
}


@dataclass
class Imported:
    """A conversation that came back, the card it was held with, and the system prompt that was in force.

    ``card`` is None if the file names no character, and not ``whole`` if it holds a name and a prompt only, as
    the first version of the format did.
    """

    conversation: Conversation
    card: Card | None
    whole: bool
    system: str


def to_markdown(conversation: Conversation, card: Card, language: Literal["zh", "en"] = "zh") -> str:
    """The greeting and the chosen versions as Markdown quotations, under the AI-generated label.

    Whatever was said is shown and never obeyed: see :func:`huanhuan.chat.safe_text.safe_markdown`.
    """
    labels = _LABELS[language]
    title = labels["title"].format(name=card.name, title=conversation.title)
    models = dict.fromkeys(turn.version.model for turn in _said(conversation) if turn.version.model)
    lines = [f"# {plain_markdown(title)}", "", f"> {NOTICE}"]
    lines += [f"> {plain_markdown(model)}" for model in models]
    lines += ["", *_quoted(card.name, "", greeting(conversation, card))]
    for turn in _said(conversation):
        speaker = card.name if turn.role == "assistant" else labels["you"]
        lines += _quoted(speaker, labels["edited"] if turn.version.finish == "edited" else "", turn.text)
    return "\n".join(lines)


def _said(conversation: Conversation) -> Iterator[Turn]:
    """The turns without the wordings that nothing was said in, such as a reply that has only just been asked for."""
    for turn in conversation.turns:
        kept = [version for version in turn.versions if version.text]
        if kept:
            place = next((i for i, version in enumerate(kept) if version is turn.version), len(kept) - 1)
            yield Turn(turn.role, kept, place)


def _quoted(speaker: str, note: str, text: str) -> list[str]:
    lines = safe_markdown("\n".join(text.splitlines())).splitlines()
    return [f"**{plain_markdown(speaker)}**{note}", "", *(f"> {line}" for line in lines or [""]), ""]


def greeting(conversation: Conversation, card: Card) -> str:
    """The greeting that opened a conversation."""
    return card.greetings[min(conversation.greeting, len(card.greetings) - 1)]


def to_json(conversation: Conversation, card: Card, system: str) -> str:
    """Everything, every version and the card included, marked as AI-generated; ``system`` is the prompt in force."""
    return json.dumps(
        {
            "format": FORMAT,
            "version": 2,
            "ai_generated": True,
            "notice": NOTICE,
            "character": card.name,
            "greeting": greeting(conversation, card),
            "greeting_number": conversation.greeting,
            "system": system,
            "persona": conversation.persona,
            "card": write_card(card, picture=True),
            "title": conversation.title,
            "turns": [
                {"role": turn.role, "chosen": turn.chosen, "versions": [_plain(each) for each in turn.versions]}
                for turn in _said(conversation)
            ],
        },
        ensure_ascii=False,
        indent=2,
    )


def _plain(version: Version) -> dict[str, Any]:
    plain: dict[str, Any] = {"text": version.text, "finish": version.finish}
    if version.model:
        plain |= {"model": version.model, "tokens": version.tokens}
    for name in ("first_token_seconds", "tokens_per_second"):
        if (value := getattr(version, name)) is not None:
            plain[name] = round(value, 3)
    return plain


def is_conversation(content: bytes) -> bool:
    """Whether a file claims to be a conversation that this page exported."""
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def from_json(content: bytes) -> Imported:
    """The conversation of an exported file; control tokens are removed from every text.

    Raises: UserError with everything that is wrong with the file, at most five lines.
    """
    if len(content) > MOST_BYTES:
        raise UserError("对话文件太大，上限 4 MB / the file is too large: 4 MB at most")
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
    title, persona = value.get("title"), value.get("persona")
    conversation = Conversation(
        persona=persona if isinstance(persona, str) else "",
        title=" ".join(tidy(title)[:40].split()) if isinstance(title, str) else "",
        turns=[turn for turn in turns if turn],
    )
    if not problems and conversation.weight > MOST_WEIGHT:
        problems.append(
            f"对话太长，上限 {MOST_WEIGHT} 字 / the conversation is too long: {MOST_WEIGHT} letters at most"
        )
    card = _card(value, problems)
    if problems:
        raise UserError(problems[:5])
    number = value.get("greeting_number")
    if card and isinstance(number, int) and 0 < number < len(card.greetings):
        conversation.greeting = int(number)
    system = tidy(value["system"])[:MOST_REPLY] if isinstance(value.get("system"), str) else ""
    return Imported(conversation, card, "card" in value, system or (card.system if card else ""))


def _card(value: dict[str, Any], problems: list[str]) -> Card | None:
    """The card in the file, else what its name and its prompt make."""
    held = value.get("card")
    if held is None and isinstance(value.get("character"), str) and value["character"].strip():
        held = {"name": value["character"], "system_prompt": value.get("system")}
    if held is None:
        return None
    try:
        return parse_card(held)
    except UserError as error:
        problems += error.problems
        return None


def _turn(value: Any, number: int, problems: list[str]) -> Turn | None:
    where = f"turns[{number}]"
    role = value.get("role") if isinstance(value, dict) else None
    if role not in ("user", "assistant"):
        problems.append(f"{where}: role 应为 user 或 assistant / must be user or assistant")
        return None
    versions = value.get("versions")
    if not isinstance(versions, list) or not 1 <= len(versions) <= MOST_VERSIONS:
        problems.append(f"{where}: versions 应有 1–{MOST_VERSIONS} 个 / must hold 1 to {MOST_VERSIONS}")
        return None
    texts = [each["text"] for each in versions if isinstance(each, dict) and isinstance(each.get("text"), str)]
    if len(texts) < len(versions) or any(len(text) > MOST_REPLY for text in texts):
        problems.append(f"{where}: text 应为不超过 {MOST_REPLY} 字的文字 / must be text of at most {MOST_REPLY}")
        return None
    chosen = value.get("chosen", 0)
    if not isinstance(chosen, int) or isinstance(chosen, bool) or not 0 <= chosen < len(versions):
        problems.append(f"{where}: chosen 超出范围 / is out of range")
        return None
    return Turn(role, [_version(text, each) for text, each in zip(texts, versions, strict=True)], chosen)


def _version(text: str, value: dict[str, Any]) -> Version:
    finish, model = value.get("finish"), value.get("model")
    return Version(
        tidy(text),
        finish if finish in FINISHES else "stop",
        tidy(model)[:100] if isinstance(model, str) else "",
        int(_number(value.get("tokens")) or 0),
        _number(value.get("first_token_seconds")),
        _number(value.get("tokens_per_second")),
    )


def _number(value: Any) -> float | None:
    """A number that can be shown, or None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e7
    return float(value) if good else None
