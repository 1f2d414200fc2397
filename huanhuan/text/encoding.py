"""Bytes to text. A guess is made only where it is beyond doubt: mojibake must never pass silently."""

from __future__ import annotations

import codecs
import re

from huanhuan.errors import UserError

# Names that --encoding takes, beside every codec Python knows, and the codec that reads what goes by that name:
# files called GBK or GB2312 hold characters that only GB18030 has, and Big5 in the wild is code page 950.
CODECS = {
    "utf8": "utf-8-sig",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "cp936": "gb18030",
    "gb18030": "gb18030",
    "big5": "cp950",
    "big5hkscs": "big5hkscs",
}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # UTF-32's little-endian mark starts with UTF-16's, so it is asked first.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The characters that make up about two thirds of any Chinese text, simplified and traditional.
_COMMON = frozenset(
    "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会家可下而过天去能对小多然于心学么之都好看"
    "起发当没成只如事把还用第样道想作种开美总从无情己面最女但现前些所同日手又行意动方期它头经长儿回位分爱老因很给名法间斯知世什两次使身者"
    "被高已亲其进此话常与活正感见明问力理尔点文几定本公特做外孩相西果走将月十实向声车全信重三机工物气每并别真打太新比才便夫再书部水像眼等"
    "体却加电主界门利海受听表德少克代员许先口由死安写性马光白或住难望教命花结乐色更拉东神记处让母父应直字场平报友关放至张认接告入笑内英军"
    "這個們來時為說國著對發當沒樣從無動頭經長兒愛給間兩進話與見問點幾將實聲車機氣別會後過還開種總體電門聽員許寫馬難樂東記處讓應場報關張認"
    "皇帝娘宫宮妃嬪嫔臣妾请請谢謝吗嗎呢吧啊姐妹哥弟爷爺奴婢候怎谁誰何快今夜二四五六七八九百千万萬早晚风風雨雪红紅请坐站等您咱哪喜怒哭泪淚"
)
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# Never in a text: unassigned or private code points and control characters tell a wrong decoding.
_WRONG = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ue000-\uf8ff\ufffd\ufffe\uffff]")
_PUNCTUATION = re.compile("[，。：！？、；“”（）…「」『』—　]")
# Half-width Katakana, Cyrillic, Greek, boxes: what Chinese bytes become in the other code page.
_ODD = re.compile(
    "[\u0370-\u03ff\u0400-\u04ff\u2500-\u25ff\u3040-\u30ff\u3100-\u312f\u3200-\u33ff\uff61-\uff9f\u00a8-\u00be]"
)
_SAMPLE = 200_000
_FEW = 6


def decode(data: bytes, name: str, encoding: str | None = None) -> tuple[str, str]:
    """The text of ``data`` and the name of its encoding; the byte order mark is dropped.

    ``encoding`` overrides the guess; ``name`` is the file as the user knows it.
    Raises: UserError for binary data, undecodable bytes, an unknown ``encoding`` and an ambiguous guess.
    """
    if encoding:
        return _as_told(data, name, encoding)
    for mark, codec in _BOMS:
        if data.startswith(mark):
            return _strict(data, name, codec, codec.removesuffix("-sig")), codec.removesuffix("-sig")
    found = _wide(data)
    if found:
        return _strict(data, name, found, found), found
    if b"\x00" in data or _looks_binary(data):
        raise UserError(
            f"{name}: 不是文本文件 / is a binary file, not text: give a .txt, .md, .docx or .fountain file, "
            "or name its encoding with --encoding"
        )
    if data.isascii():
        return data.decode("ascii"), "ascii"
    return _guess(data, name)


def _as_told(data: bytes, name: str, encoding: str) -> tuple[str, str]:
    codec = CODECS.get(encoding.lower().replace("-", "").replace("_", ""), encoding)
    try:
        codecs.lookup(codec)
        is_text = codecs.lookup(codec)._is_text_encoding  # type: ignore[attr-defined]
    except LookupError:
        is_text = False
    if not is_text:
        raise UserError(
            f"--encoding {encoding}: 未知编码 / unknown encoding: use utf-8, utf-16, gb18030, big5 or another Python codec"
        )
    if codec == "cp950":
        # Hong Kong's additions are tried only where code page 950 fails: the two differ in a few signs.
        try:
            return data.decode(codec), "big5"
        except UnicodeDecodeError:
            return _strict(data, name, "big5hkscs", encoding), "big5hkscs"
    text = _strict(data, name, codec, encoding)
    return text.removeprefix("\ufeff"), encoding.lower()


def _strict(data: bytes, name: str, codec: str, shown: str) -> str:
    try:
        return data.decode(codec)
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = data.count(b"\n", 0, start) + 1
        raise UserError(
            f"{name}:{line}: 第 {start} 字节不是 {shown} 编码 / byte {start} is not {shown}: "
            "name the right one with --encoding, or save the file as UTF-8"
        ) from None


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: it holds zero bytes, and one byte order gives text where the other gives nonsense."""
    sample = data[:_SAMPLE]
    if len(data) % 2 or b"\x00" not in sample:
        return None
    marks: dict[str, float] = {}
    for codec in ("utf-16-le", "utf-16-be"):
        try:
            text = data.decode(codec)[: _SAMPLE // 2]
        except UnicodeDecodeError:
            continue
        if not _WRONG.search(text):
            marks[codec] = sum(
                each in _COMMON or " " <= each <= "~" or each in "\n\r\t，。：！？“”" for each in text
            ) / len(text)
    best = max(marks, key=lambda codec: marks[codec], default=None)
    if best is None or marks[best] < 0.3 or (marks[best] < 2 * min(marks.values()) and len(marks) > 1):
        return None
    return best


def _looks_binary(data: bytes) -> bool:
    sample = data[:_SAMPLE]
    control = len(sample) - len(sample.translate(None, bytes([*range(1, 8), *range(14, 27), *range(28, 32)])))
    return control > max(4, len(sample) // 200)


def _guess(data: bytes, name: str) -> tuple[str, str]:
    """Decode bytes that are neither marked nor ASCII.

    Every candidate that decodes strictly gets a mark for how much it reads like a text, between 0 and 1. Valid
    UTF-8 of more than a few characters is no accident, so there it is UTF-8 whatever the rest says.
    """
    texts: dict[str, str] = {}
    for shown, codecs_of in (("utf-8", ("utf-8",)), ("gb18030", ("gb18030",)), ("big5", ("cp950", "big5hkscs"))):
        for codec in codecs_of:
            try:
                texts[shown] = data.decode(codec)
                break
            except UnicodeDecodeError:
                continue
    high = sum(byte > 127 for byte in data[:_SAMPLE]) if "utf-8" in texts else 0
    if high >= 24 and not _WRONG.search(texts["utf-8"][:_SAMPLE]):
        return texts["utf-8"], "utf-8"
    marks = {shown: _readable(text[: _SAMPLE // 4]) for shown, text in texts.items()}
    if _mostly_latin(data):
        try:
            texts["cp1252"] = data.decode("cp1252")
            marks["cp1252"] = 0.9
            marks = {
                shown: mark if shown != "gb18030" and shown != "big5" else min(mark, 0.5)
                for shown, mark in marks.items()
            }
        except UnicodeDecodeError:
            pass
    if "utf-8" in marks and marks["utf-8"] >= 0.5:
        # Three-byte sequences that are valid by chance are one in thousands.
        marks["utf-8"] = max(marks["utf-8"], 0.95)
    ranked = sorted(marks, key=lambda shown: -marks[shown])
    if not ranked:
        raise UserError(
            f"{name}: 认不出编码 / unknown encoding (not UTF-8, UTF-16, GB18030 or Big5): name it with --encoding"
        )
    best = ranked[0]
    rest = max((marks[shown] for shown in ranked[1:]), default=0.0)
    # One common character proves nothing: a short text that another code page can hold as well is not certain.
    short = len(_HAN.findall(texts[best])) < _FEW and best in ("gb18030", "big5")
    rivals = [shown for shown in ranked[1:] if short and not _WRONG.search(texts[shown])]
    if marks[best] < 0.35 or marks[best] - rest < 0.25 or rivals:
        candidates = ", ".join(ranked)
        raise UserError(
            f"{name}: 编码不能确定，可能是 {candidates} / the encoding is ambiguous ({candidates}): "
            f"choose one with --encoding {best}"
        )
    return texts[best], best


def _readable(text: str) -> float:
    """How much ``text`` reads like Chinese in the right encoding: 0 not at all, 1 beyond doubt."""
    han = _HAN.findall(text)
    if not han:
        return 0.4 if not _WRONG.search(text) and not _ODD.search(text) else 0.0
    common = sum(character in _COMMON for character in han) / len(han)
    wrong = (3 * len(_WRONG.findall(text)) + len(_ODD.findall(text))) / len(han)
    helped = min(0.2, len(_PUNCTUATION.findall(text)) / len(han))
    # A true decoding of ordinary prose has 0.4 to 0.7 common characters, a false one under 0.1.
    return max(0.0, min(1.0, 1.8 * common + helped - wrong))


def _mostly_latin(data: bytes) -> bool:
    """Whether single bytes over 127 stand among Latin letters, as Windows quotation marks do in English."""
    high = re.findall(rb"[\x80-\xff]+", data[:_SAMPLE])
    letters = len(re.findall(rb"[A-Za-z]", data[:_SAMPLE]))
    return bool(high) and all(len(run) == 1 for run in high) and letters > 5 * len(high)
