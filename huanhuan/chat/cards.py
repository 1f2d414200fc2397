"""Character cards of SillyTavern and its kin: V2 and V3, as JSON or inside a PNG, to a persona and back."""

from __future__ import annotations

import base64
import binascii
import json
import struct
import zlib
from typing import Any

from huanhuan.errors import UserError
from huanhuan.persona import Persona
from huanhuan.template import clean

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 4 * 1024 * 1024
MOST_LETTERS = 8000
DEFAULT_STARTERS = ("你好。", "你是谁？")
_OUR_KEY = "huanhuan"


def read_card(content: bytes) -> Persona:
    """The persona of a card file, JSON or PNG.

    A card made by :func:`write_card` comes back whole. Of any other, ``description``, ``personality`` and
    ``scenario`` become the system prompt, after ``system_prompt`` if there is one, and ``first_mes`` the
    greeting; ``{{char}}`` and ``{{user}}`` are filled in. Lore books, scripts and pictures are left out.

    Raises: UserError, one line, for anything that is no card.
    """
    if len(content) > MOST_BYTES:
        raise UserError("角色卡太大，上限 4 MB / the card is too large: 4 MB at most")
    if content.startswith(SIGNATURE):
        content = _card_in_png(content)
    try:
        card = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise _no_card("不是 JSON / not JSON") from None
    if not isinstance(card, dict):
        raise _no_card("不是对象 / not an object")
    data = card["data"] if isinstance(card.get("data"), dict) else card
    name = _text(data, "name", 60)
    if not name:
        raise _no_card("没有 name / no name")
    ours = data.get("extensions", {}).get(_OUR_KEY) if isinstance(data.get("extensions"), dict) else None
    ours = ours if isinstance(ours, dict) else {}
    system = _text(ours, "system") or _system(data, name)
    return Persona(
        name=name,
        aliases=_texts(ours.get("aliases"), 20),
        system=system[:MOST_LETTERS],
        greeting=_fill(_text(data, "first_mes"), name) or f"（{name}看着你。）",
        starters=_texts(ours.get("starters"), 8) or DEFAULT_STARTERS,
        identity=(),
    )


def write_card(persona: Persona) -> dict[str, Any]:
    """The persona as a V2 card; what V2 has no place for goes under ``extensions.huanhuan``.

    >>> write_card(Persona("甲", (), "扮演甲", "你好", ("乙",), ()))["data"]["first_mes"]
    '你好'
    """
    return {
        "spec": "chara_card_v2",
        "spec_version": "2.0",
        "data": {
            "name": persona.name,
            "description": "",
            "personality": "",
            "scenario": "",
            "first_mes": persona.greeting,
            "mes_example": "",
            "creator_notes": "Chat-嬛嬛",
            "system_prompt": persona.system,
            "post_history_instructions": "",
            "alternate_greetings": [],
            "tags": [],
            "creator": "",
            "character_version": "",
            "extensions": {
                _OUR_KEY: {
                    "system": persona.system,
                    "aliases": list(persona.aliases),
                    "starters": list(persona.starters),
                }
            },
        },
    }


def card_json(persona: Persona) -> bytes:
    """The card as a JSON file."""
    return json.dumps(write_card(persona), ensure_ascii=False, indent=2).encode()


def card_png(persona: Persona, picture: bytes) -> bytes:
    """``picture``, a PNG, with the card inside: V2 under ``chara`` and V3 under ``ccv3``, as others read them."""
    card = write_card(persona)
    later = {**card, "spec": "chara_card_v3", "spec_version": "3.0"}
    later["data"] = {**card["data"], "group_only_greetings": []}
    chunks = b""
    for keyword, value in (("chara", card), ("ccv3", later)):
        text = base64.b64encode(json.dumps(value, ensure_ascii=False).encode())
        chunks += _chunk(b"tEXt", keyword.encode() + b"\0" + text)
    end = picture.rindex(b"IEND") - 4
    return picture[:end] + chunks + picture[end:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _card_in_png(content: bytes) -> bytes:
    """The JSON in a PNG's text chunks, V3 before V2; the picture itself is never decoded."""
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


def _text(values: dict[str, Any], key: str, most: int = MOST_LETTERS) -> str:
    value = values.get(key)
    return clean(value)[:most] if isinstance(value, str) else ""


def _texts(value: Any, most: int) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    cleaned = [clean(each)[:300] for each in value[:most] if isinstance(each, str)]
    return tuple(dict.fromkeys(each for each in cleaned if each))


def _fill(text: str, name: str) -> str:
    for macro, value in (("{{char}}", name), ("{{user}}", "你"), ("<BOT>", name), ("<USER>", "你")):
        text = text.replace(macro, value).replace(macro.title(), value).replace(macro.upper(), value)
    return clean(text)


def _system(data: dict[str, Any], name: str) -> str:
    prompt = _text(data, "system_prompt").replace("{{original}}", "").strip()
    parts = [prompt or f"现在你要扮演{name}"]
    parts += [_text(data, key) for key in ("description", "personality", "scenario")]
    return _fill("\n".join(part for part in parts if part), name)
