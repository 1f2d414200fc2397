"""Speaker labels: how they stand before a speech in each layout, which are names, and who is meant."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

COLONS = "：:∶﹕︰"
# What typists hit instead of the colon; believed only after a name that is known otherwise.
SLIPS = "；;，,？?"
_BEAT = r"(?:\s*(?:[（(][^（()）]{0,80}[）)]|【[^【】]{0,80}】|\[[^\[\]]{0,80}\]|〔[^〔〕]{0,80}〕))"
_NAME_CHARS = f'[^{COLONS}；;，,。！!？?…“”"「」『』（）()【】\\[\\]〔〕《》*\\t\\n]'
_NAME = f"{_NAME_CHARS}{{1,40}}?"
# Markdown's bold, the brackets that some put around a name, bullets and quote marks before it.
_MARKS = r"[*_]{0,3}"
_PREFIX = re.compile(
    r"(?:[>\-+*•·#]{1,6}\s+)*"
    r"(?:[\[（(【]?\d{1,2}[:：]\d{2}(?:[:：]\d{2})?(?:[.,]\d{1,3})?[\]）)】]?"
    r"(?:\s*-->\s*[\d:.,]+|\s*[-–~]\s*[\[(]?\d{1,2}:\d{2}(?::\d{2})?(?:[.,]\d{1,3})?[\])]?)?\s*[-–]?\s*"
    r"|\[\d{1,6}\]\s*|[（(]\d{1,6}[）)]\s*|[#№]?\d{1,6}(?:-\d{1,6})?(?:[.．、)）]\s*|\s+)|[①-⑳]\s*)?"
)
_PREFIX_FIRST = frozenset("0123456789[（(【>-+*•·#№①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳")
_COLON = re.compile(
    rf"{_MARKS}\s*(?P<pre>{_BEAT}?)\s*(?:[【\[「『<〈]\s*(?P<boxed>{_NAME})\s*(?P<beat0>{_BEAT}*)\s*[】\]」』>〉]|(?P<name>{_NAME}))\s*"
    rf"{_MARKS}(?P<beat>{_BEAT}*)\s*{_MARKS}\s*[{COLONS}]\s*{_MARKS}(?P<speech>.*)",
    re.DOTALL,
)
_SIMPLE = re.compile(rf"({_NAME_CHARS}{{1,40}}?)[{COLONS}](.*)", re.DOTALL)
_SLIP = re.compile(
    rf"(?P<name>{_NAME})\s*(?P<beat>{_BEAT}*)\s*(?:[{re.escape(SLIPS)}]|(?=[“「『]))(?P<speech>.*)", re.DOTALL
)
_TAB = re.compile(
    rf"{_MARKS}(?P<name>{_NAME}){_MARKS}\s?(?P<beat>{_BEAT}*)(?:\t+|　+|\s*\t\s*| {{2,}})(?P<speech>\S.*)", re.DOTALL
)
_BRACKET = re.compile(
    rf"[【\[<〈]\s*(?P<name>{_NAME})\s*(?P<beat>{_BEAT}*)\s*[】\]>〉]\s*(?P<after>{_BEAT}*)\s*[{COLONS}]?\s*(?P<speech>.*)",
    re.DOTALL,
)
_LONE = re.compile(
    rf"{_MARKS}\s*(?:[【\[<]\s*(?P<boxed>{_NAME})\s*[】\]>]|(?P<name>{_NAME}))\s*{_MARKS}(?P<beat>{_BEAT}*)\s*[{COLONS}.]?\s*{_MARKS}\s*$"
)
# Where a voice comes from, or that a speech goes on, is no stage direction.
_TECHNICAL = re.compile(
    r"(?:\b(?:CONT[’']?D|CONTINUED|CONT|MORE|V\.?\s?O|O\.?\s?[SC])\b\.?|^\s*[续續]\s*$)", re.IGNORECASE
)
_BARE = re.compile(r"[（(【\[〔]|[）)】\]〕]")

# Labels that head a line of a script without anybody speaking.
_NARRATORS_LIST = (
    "旁白 画外音 畫外音 字幕 解说 解說 注 註 注释 按 按语 场景 場景 地点 地點 时间 時間 人物 "
    "出场人物 出場人物 镜头 鏡頭 音效 音乐 音樂 片头 片尾 片名 备注 備註 提示 内景 外景 编剧 編劇 "
    "导演 導演 作者 来源 來源 日期 道具 服装 灯光 舞台 布景 幕启 幕落 特写 闪回 剧名 标题 演员 主演 "
    "简介 剧情 集数 闪出 叠印 转场 插曲 歌词 主题曲 备用 说明 動作 动作 环境 气氛 narrator narration "
    "note notes title author date scene setting time place cast characters music sound sfx caption "
    "subtitle copyright source voiceover written draft credit contact "
)
NARRATORS = frozenset(_NARRATORS_LIST.split())
_SAYING = re.compile("[说說道问問曰云想骂罵喊叫答笑叹嘆谓謂称稱是]$")
_SUFFIX = re.compile(
    r"\s*(?:\bO\.?S\.?|\bV\.?O\.?|画外音|畫外音|内心独白|内心獨白|独白|獨白|旁白|OS|VO)$", re.IGNORECASE
)
_JOINT = re.compile(r"\s*(?:[、/／&＆+＋,]|\band\b|\bAND\b)\s*|(?<=[\u4e00-\u9fff])[和与與及](?=[\u4e00-\u9fff])")
# Parts that are a title after a name and not somebody beside it.
_TITLES_LIST = (
    "娘娘 公公 大人 姑姑 嬷嬷 小主 主子 太医 姑娘 小姐 先生 夫人 公子 将军 王爷 贝勒 格格 福晋 老师 "
    "同学 师傅 大哥 大姐 "
)
_TITLES = frozenset(_TITLES_LIST.split())
_LATIN = re.compile(r"[A-Za-z]")
_BAD_NAME = re.compile(r"^[\d\W_]+$")


class Match(NamedTuple):
    """A line taken apart: the label as typed, the direction at the label (without brackets), the rest."""

    name: str
    beat: str
    speech: str


def strip_prefix(line: str) -> str:
    """``line`` without a bullet, a number or a time stamp before its label.

    >>> strip_prefix("[00:01:02] 皇帝：平身"), strip_prefix("12. 皇帝：平身")
    ('皇帝：平身', '皇帝：平身')
    """
    if line and line[0] in _PREFIX_FIRST:
        match = _PREFIX.match(line)
        if match and match.end() < len(line):
            return line[match.end() :]
    return line


def match_colon(line: str) -> Match | None:
    """``名：台词``, with beats, boxes or bold around the name.

    >>> match_colon("皇帝（喜）：平身：快")
    Match(name='皇帝', beat='喜', speech='平身：快')
    """
    match = _SIMPLE.match(line)
    if match and line[0] not in "*_":
        return _named(match[1], "", match[2])
    match = _COLON.match(line)
    if not match:
        return None
    beat = (match["pre"] or "") + (match["beat0"] or "") + match["beat"]
    return _named(match["boxed"] or match["name"], beat, match["speech"])


def match_slip(line: str) -> Match | None:
    """A label whose colon was mistyped, or left out before a quotation mark."""
    match = _SLIP.match(line)
    return _named(match["name"], match["beat"], match["speech"]) if match else None


def match_tab(line: str) -> Match | None:
    """``名<tab>台词``; several blanks or a full-width one count as a tab."""
    match = _TAB.match(line)
    return _named(match["name"], match["beat"], match["speech"]) if match else None


def match_bracket(line: str) -> Match | None:
    """``【名】台词``."""
    match = _BRACKET.match(line)
    if not match or not match["speech"].strip():
        return None
    return _named(match["name"], match["beat"] + match["after"], match["speech"])


def match_lone(line: str) -> Match | None:
    """A name on a line of its own, with or without a colon or full stop."""
    if len(line) > 60:
        return None
    match = _LONE.match(line)
    return _named(match["boxed"] or match["name"], match["beat"], "") if match else None


MATCHERS: dict[str, Callable[[str], Match | None]] = {
    "colon": match_colon,
    "tab": match_tab,
    "bracket": match_bracket,
    "name-line": match_lone,
}


def _named(name: str, beat: str, speech: str) -> Match | None:
    name = name.strip(" \t　*_")
    if not name or speech.startswith("//"):
        return None
    shown = " ".join(_TECHNICAL.sub("", _BARE.sub(" ", beat)).split()) if beat else ""
    shorter = _SUFFIX.sub("", name)
    if shorter and shorter != name:
        shown = f"{name[len(shorter) :].strip()} {shown}".strip()
        name = shorter.strip()
    return Match(name, shown, speech.lstrip(f"{COLONS} \t　").rstrip(" \t　")) if name else None


@lru_cache(maxsize=65536)
def name_key(name: str) -> str:
    """What two spellings of one name share: width, case and outer blanks do not count, characters do.

    >>> name_key("ROMEO ") == name_key("Ｒomeo")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


@lru_cache(maxsize=65536)
def is_narrator(name: str) -> bool:
    """Whether a label heads a note, a caption or a place instead of a speech."""
    return name_key(name) in NARRATORS


@lru_cache(maxsize=65536)
def could_be_name(name: str) -> bool:
    """Whether a label that occurs only once may be somebody's name: short, and no clause.

    >>> could_be_name("小太监甲"), could_be_name("他只回了我一句话"), could_be_name("First Citizen")
    (True, False, True)
    """
    if _BAD_NAME.match(name) or name.startswith(("http", "第")):
        return False
    if _LATIN.search(name):
        words = name.split()
        return (
            len(words) <= 5
            and all(word[0].isupper() or not word[0].isalpha() or word in _SMALL for word in words)
            and any(word[0].isupper() for word in words)
        )
    parts = [part for part in _JOINT.split(name) if part]
    return all(len(part.replace(" ", "")) <= 7 for part in parts) and not _SAYING.search(name)


_SMALL = frozenset(["of", "the", "and", "de", "la", "von", "van", "with", "to"])


class Speakers:
    """Who is who among the labels of the files read so far."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = tuple(names)
        self.aliases = {name_key(name) for name in self.names}
        self.counts: Counter[str] = Counter()

    def add(self, labels: Counter[str]) -> None:
        """Take in the labels of one file."""
        self.counts.update(labels)

    def known(self, name: str) -> bool:
        """Whether ``name`` has been seen as a speaker or is an alias."""
        key = name_key(name)
        return key in self.aliases or self.counts[key] > 0

    def frequent(self, name: str) -> bool:
        """Whether ``name`` is beyond doubt a speaker: an alias, or seen twice."""
        key = name_key(name)
        return key in self.aliases or self.counts[key] > 1

    def resolve(self, label: str) -> tuple[str, ...]:
        """The speakers that a label is made of: 甄嬛、陵容 and 甄嬛陵容 are two people, 皇后娘娘 is one."""
        parts = [part.strip() for part in _JOINT.split(label) if part.strip()]
        if len(parts) > 1:
            # 和, 与 and 及 also stand inside names, so those must lead to known people.
            if all(self.known(part) for part in parts) or not re.search("[和与與及]", label):
                return tuple(dict.fromkeys(parts))
            parts = [part.strip() for part in re.split(r"[、/／&＆+＋]", label) if part.strip()]
            if len(parts) > 1:
                return tuple(dict.fromkeys(parts))
            return (label,)
        key = name_key(label)
        if key in self.aliases or len(label) < 4 or len(label) > 24 or _LATIN.search(label):
            return (label,)
        split = self._glued(label, self.counts[key])
        return tuple(dict.fromkeys(split)) if split else (label,)

    def _glued(self, label: str, count: int) -> list[str] | None:
        """``label`` as two or more names, each of two characters at least and more frequent than itself."""
        best: list[list[str] | None] = [[]] + [None] * len(label)
        for end in range(2, len(label) + 1):
            for start in range(max(0, end - 8), end - 1):
                part = label[start:end]
                head = best[start]
                if head is None or part == label or part in _TITLES:
                    continue
                key = name_key(part)
                if key in self.aliases or self.counts[key] > max(1, count):
                    current = best[end]
                    if current is None or len(head) + 1 < len(current):
                        best[end] = [*head, part]
        found = best[len(label)]
        return found if found and len(found) > 1 else None


def look_alikes(counts: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """For each label those it may be a slip of, or that may be a slip of it.

    Two labels are alike if they differ by blanks, or by one character while one of them is rare beside the
    other: 皇帝 and 皇后 both speak often and are two people. Labels are compared through what is left of
    them without one character, so the work grows with their number.

    >>> look_alikes({"甄嬛": 90, "甄缳": 1, "甄 嬛": 2, "皇帝": 80, "皇后": 70})
    {'甄嬛': ('甄 嬛', '甄缳'), '甄 嬛': ('甄嬛',), '甄缳': ('甄嬛',)}
    """
    near: dict[str, dict[str, None]] = {}
    groups: dict[tuple[str, int], list[str]] = {}
    for name in counts:
        key = name_key(name)
        bare = key.replace(" ", "")
        groups.setdefault((bare, -1), []).append(name)
        if 2 <= len(key) <= 24 and bare == key:
            for at in range(len(key)):
                rest = key[:at] + key[at + 1 :]
                # A changed character leaves the same rest at the same place, a lost one leaves the other name.
                groups.setdefault((rest, at), []).append(name)
                if len(rest) >= 2 and key[at] not in _COUNTING:
                    groups.setdefault((rest, -1), []).append(name)
    for (_, at), group in groups.items():
        if len(group) < 2:
            continue
        often = max(group, key=lambda name: counts[name])
        for name in group:
            if name == often or (at >= 0 and _by_count(name, often, at)):
                continue
            if (
                name_key(name).replace(" ", "") == name_key(often).replace(" ", "")
                or 20 * counts[name] <= counts[often] + 19
            ):
                near.setdefault(often, {})[name] = None
                near.setdefault(name, {})[often] = None
    return {name: tuple(near[name]) for name in sorted(near, key=lambda name: -counts[name])}


_COUNTING = frozenset("甲乙丙丁戊己庚辛一二三四五六七八九十0123456789abcde男女大小老众")


def _by_count(name: str, other: str, at: int) -> bool:
    """Whether two labels differ in a counting word, as 太监甲 and 太监乙 do, or in rank, as 华妃 and 端妃."""
    return name_key(name)[at] in _COUNTING or name_key(other)[at] in _COUNTING
