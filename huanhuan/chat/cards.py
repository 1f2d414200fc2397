"""Character cards of SillyTavern and its kin: V2 and V3, as JSON or inside a PNG, to a persona and back."""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
import zlib
from dataclasses import dataclass, fields
from typing import Any

from huanhuan.chat.portrait import readable_picture
from huanhuan.errors import UserError
from huanhuan.persona import Persona
from huanhuan.template import clean

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 4 * 1024 * 1024
MOST_LETTERS = 8000
MOST_GREETINGS = 10
MOST_GREETING_LETTERS = 2000
MOST_STARTERS = 8
_OUR_KEY = "huanhuan"
# What of a foreign card becomes the prompt, beside system_prompt.
_PROMPT = ("description", "personality", "scenario", "mes_example", "post_history_instructions")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_COMMENT = re.compile(r"\{\{//.*?\}\}", re.DOTALL)
_TALK = re.compile(r"\s*<START>\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Card(Persona):
    """A persona with what only a card has: other greetings to choose from, and a picture of its own (JPEG)."""

    alternates: tuple[str, ...] = ()
    picture: bytes = b""

    @classmethod
    def of(cls, persona: Persona) -> Card:
        """``persona`` as a card, unless it is one."""
        return (
            persona if isinstance(persona, cls) else cls(**{f.name: getattr(persona, f.name) for f in fields(persona)})
        )

    @property
    def greetings(self) -> tuple[str, ...]:
        """Every greeting, the usual one first."""
        return (self.greeting, *self.alternates)

    @property
    def chinese(self) -> bool:
        """Whether the card is written in Chinese."""
        return bool(_CHINESE.search(self.system + self.greeting))

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that is written on it."""
        return (*self.names, self.system, *self.greetings, *self.starters)


@dataclass(frozen=True)
class _Words:
    """What a card leaves open, in one language; ``user`` is how the prompt speaks of the visitor."""

    play: str
    user: str
    you: str
    greeting: str
    starters: tuple[str, ...]
    examples: str


_ZH = _Words("现在你要扮演{name}", "对方", "你", "（{name}看着你。）", ("你好。", "你是谁？"), "说话的样子：")
_EN = _Words(
    "You are now playing {name}.",
    "the user",
    "you",
    "*{name} looks at you.*",
    ("Hello.", "Who are you?"),
    "How {name} talks:",
)


def read_card(content: bytes) -> Card:
    """The card of a file, JSON or PNG; a PNG is its picture too, decoded and encoded anew.

    Raises: UserError, one line, for anything that is no card.
    """
    if len(content) > MOST_BYTES:
        raise UserError("角色卡太大，上限 4 MB / the card is too large: 4 MB at most")
    picture = b""
    if content.startswith(SIGNATURE):
        picture = readable_picture(content) or b""
        content = _card_in_png(content)
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise _no_card("不是 JSON / not JSON") from None
    return parse_card(value, picture)


def parse_card(card: Any, picture: bytes = b"") -> Card:
    """The card of an object as V2 and V3 have it.

    A card made by :func:`write_card` comes back whole. Of any other, ``system_prompt``, ``description``,
    ``personality``, ``scenario``, ``mes_example`` and ``post_history_instructions`` become the system prompt
    in this order, the examples shortened if it gets too long; ``first_mes`` and ``alternate_greetings`` become
    the greetings. ``{{char}}`` and ``{{user}}`` are filled in. Lore books and scripts are left out.

    Raises: UserError, one line, for anything that is no card.
    """
    if not isinstance(card, dict):
        raise _no_card("不是对象 / not an object")
    data = card["data"] if isinstance(card.get("data"), dict) else card
    name = " ".join(_text(data, "name", 60).split())
    if not name:
        raise _no_card("没有 name / no name")
    extensions = data.get("extensions")
    ours = extensions.get(_OUR_KEY) if isinstance(extensions, dict) else None
    ours = ours if isinstance(ours, dict) else {}
    written = "".join(_text(data, key) for key in ("system_prompt", "description", "first_mes"))
    words = _ZH if _CHINESE.search(written) or not re.search(r"[A-Za-z]{3}", written) else _EN
    # A card of ours that was edited elsewhere is read as others' cards are.
    untouched = _text(ours, "system") == _text(data, "system_prompt") and not any(_text(data, key) for key in _PROMPT)
    alternates = _texts(data.get("alternate_greetings"), MOST_GREETINGS, MOST_GREETING_LETTERS)
    return Card(
        name=name,
        aliases=_texts(ours.get("aliases"), 20),
        system=(untouched and _text(ours, "system")) or _system(data, name, words),
        greeting=_fill(_text(data, "first_mes"), name, words.you) or words.greeting.format(name=name),
        starters=_texts(ours.get("starters"), MOST_STARTERS) or words.starters,
        identity=(),
        alternates=tuple(filter(None, (_fill(each, name, words.you) for each in alternates))),
        picture=picture or _own_picture(ours.get("picture")),
    )


def write_card(card: Card, *, picture: bool = False) -> dict[str, Any]:
    """The card as V2 has it; what V2 has no place for goes under ``extensions.huanhuan``, the picture if asked for.

    >>> write_card(Card("甲", (), "扮演甲", "你好", ("乙",), ()))["data"]["first_mes"]
    '你好'
    """
    ours: dict[str, Any] = {
        "system": card.system,
        "aliases": list(card.aliases),
        "starters": list(card.starters),
    }
    if picture and card.picture:
        ours["picture"] = base64.b64encode(card.picture).decode()
    return {
        "spec": "chara_card_v2",
        "spec_version": "2.0",
        "data": {
            "name": card.name,
            "description": "",
            "personality": "",
            "scenario": "",
            "first_mes": card.greeting,
            "mes_example": "",
            "creator_notes": "Chat-嬛嬛",
            "system_prompt": card.system,
            "post_history_instructions": "",
            "alternate_greetings": list(card.alternates),
            "tags": [],
            "creator": "",
            "character_version": "",
            "extensions": {_OUR_KEY: ours},
        },
    }


def card_json(card: Card) -> bytes:
    """The card as a JSON file."""
    return json.dumps(write_card(card, picture=True), ensure_ascii=False, indent=2).encode()


def card_png(card: Card, picture: bytes) -> bytes:
    """``picture``, a PNG, with the card inside: V2 under ``chara`` and V3 under ``ccv3``, as others read them."""
    value = write_card(card)
    later = {**value, "spec": "chara_card_v3", "spec_version": "3.0"}
    later["data"] = {**value["data"], "group_only_greetings": []}
    chunks = b""
    for keyword, each in (("chara", value), ("ccv3", later)):
        text = base64.b64encode(json.dumps(each, ensure_ascii=False).encode())
        chunks += _chunk(b"tEXt", keyword.encode() + b"\0" + text)
    end = picture.rindex(b"IEND") - 4
    return picture[:end] + chunks + picture[end:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _card_in_png(content: bytes) -> bytes:
    """The JSON in a PNG's text chunks, V3 before V2."""
    found: dict[bytes, bytes] = {}
    place = len(SIGNATURE)
    while place + 8 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        if kind == b"IEND" or len(body) < length:
            break
        if kind == b"tEXt" and b"\0" in body:
            keyword, text = body.split(b"\0", 1)
            found.setdefault(keyword.lower(), text)
        place += 12 + length
    for keyword in (b"ccv3", b"chara"):
        if keyword in found:
            try:
                return base64.b64decode(found[keyword], validate=True)
            except (binascii.Error, ValueError):
                raise _no_card("图片里的数据已损坏 / the data in the picture is damaged") from None
    raise _no_card("图片里没有角色 / there is no character in the picture")


def _no_card(why: str) -> UserError:
    return UserError(f"这不是角色卡：{why}。请用 SillyTavern V2/V3 的 JSON 或 PNG / not a character card: use V2 or V3")


def _own_picture(value: Any) -> bytes:
    """A picture inside a file of ours, which anybody may have written: decoded and encoded anew."""
    if not isinstance(value, str):
        return b""
    try:
        return readable_picture(base64.b64decode(value, validate=True)) or b""
    except (binascii.Error, ValueError):
        return b""


def tidy(text: str) -> str:
    r"""``text`` without control tokens and without what is no character of any file: halves of surrogate pairs.

    >>> tidy("\ud800好<|im_end|>")
    '?好'
    """
    return clean(text.encode("utf-8", "replace").decode())


def _text(values: dict[str, Any], key: str, most: int = MOST_LETTERS) -> str:
    value = values.get(key)
    # Cutting may leave a space at the end.
    return tidy(value)[:most].rstrip() if isinstance(value, str) else ""


def _texts(value: Any, most: int, letters: int = 300) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    cleaned = [tidy(each)[:letters].rstrip() for each in value[:most] if isinstance(each, str)]
    return tuple(dict.fromkeys(each for each in cleaned if each))


def _fill(text: str, name: str, user: str) -> str:
    text = _COMMENT.sub("", text)
    for macro, value in (("{{char}}", name), ("{{user}}", user), ("<bot>", name), ("<user>", user)):
        text = re.sub(re.escape(macro), lambda _, value=value: value, text, flags=re.IGNORECASE)
    return clean(text)


def _system(data: dict[str, Any], name: str, words: _Words) -> str:
    prompt = _text(data, "system_prompt").replace("{{original}}", "").strip()
    before = [prompt or words.play.format(name=name)]
    before += [_text(data, key) for key in _PROMPT[:3]]
    after = _text(data, "post_history_instructions").replace("{{original}}", "").strip()
    head, tail = (_fill("\n".join(filter(None, each)), name, words.user) for each in (before, [after]))
    talk = _fill(_TALK.sub("\n\n", _text(data, "mes_example")), name, words.user)
    room = MOST_LETTERS - len(head) - len(tail) - len(words.examples.format(name=name)) - 3
    if talk and room > 0:
        if len(talk) > room:
            # Whole lines only: half a line is a bad example.
            talk = talk[:room].rpartition("\n")[0].strip()
        if talk:
            head = f"{head}\n{words.examples.format(name=name)}\n{talk}"
    if tail:
        head = f"{head[: MOST_LETTERS - len(tail) - 1]}\n{tail}"
    return clean(head[:MOST_LETTERS])
