"""The sample script: its size, its quirks and the place of every starter, read without the converter."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
from docx import Document

from huanhuan.dataset.output import FOLDER_FILES
from huanhuan.paths import DATA
from huanhuan.persona import load_persona

CHARACTER = DATA / "huanhuan"
SCRIPT = CHARACTER / "script"
EPISODES = tuple(f"第{number}集.txt" for number in "一二三四五六")
CODA = "第六集尾声.docx"
SEASONS, CLOCK, BULBS = "第六集番外一.txt", "第六集番外二.txt", "第六集番外三.fountain"
FILES = (*EPISODES, CODA, SEASONS, CLOCK, BULBS)
# The others are UTF-8.
ENCODINGS = {"第二集.txt": "gb18030", "第四集.txt": "utf-16"}
PERSONA = load_persona(CHARACTER / "persona.toml")
HER = frozenset(PERSONA.names)

CAST = (
    "甄嬛|嬛嬛|莞常在|莞贵人|莞嫔|皇帝|太后|绮妃|慎嫔|陆晚照|秋砚|豆蔻|小墩子|老葛|裴太医|卞总管|小公主|常公公|"
    "太监甲|太监乙|宫女|屏后人"
)
HEADING = re.compile(r"第\d+[,，]?[幕场秒](（续）|：)?|【另分一幕】|\d+-\d+|INT\. .+ - DAY")
SPEECH = re.compile(
    r"(?:\[[\d:]+\]\s*|\d+\.\s*)?(?:\*\*|【)?"
    rf"(?P<who>(?:{CAST})(?:、?(?:{CAST}))*|众人|众|三人|陆晚昭|甄媛)"
    r"(?:\*\*|】)?(?:（[^）]*）|\([^)]*\))?[\s\u3000]*"
    r"[：:；，？]\s*(?P<text>.+)"
)
DIRECTION = re.compile(r"[（(][^）)]*[）)]|【[^】]*】|（[^）]*$")


@dataclass(frozen=True)
class Line:
    """One speech line: the heading it stands under, its place, its label and what is left without directions."""

    scene: str
    place: str
    who: str
    text: str


def raw(name: str) -> str:
    """The text of one file as it stands, byte order mark and line ends included."""
    return (SCRIPT / name).read_bytes().decode(ENCODINGS.get(name, "utf-8"))


@cache
def plain(name: str) -> str:
    """The text of one file with one kind of line end and without a byte order mark."""
    if name.endswith(".docx"):
        return "\n".join(paragraph.text for paragraph in Document(str(SCRIPT / name)).paragraphs)
    return raw(name).replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")


@cache
def read() -> tuple[tuple[str, ...], tuple[Line, ...], tuple[str, ...]]:
    """The headings, the speech lines, and the places of lines that are none of the known kinds."""
    headings: list[str] = []
    lines: list[Line] = []
    others: list[str] = []
    for name in EPISODES:
        text = plain(name).replace("\u200b", "")
        for number, line in enumerate(text.splitlines(), 1):
            line, place = line.strip(), f"{name}:{number}"
            if HEADING.fullmatch(line):
                headings.append(f"{place} {line}")
            elif found := SPEECH.fullmatch(line):
                lines.append(Line(headings[-1], place, found["who"], DIRECTION.sub("", found["text"])))
            elif line and not DIRECTION.fullmatch(line) and line != name.removesuffix(".txt"):
                others.append(f"{place} {line}")
    return tuple(headings), tuple(lines), tuple(others)


def exchanges() -> list[tuple[Line, Line]]:
    """Every line of hers with the line of somebody else right before it under the same heading."""
    _, lines, _ = read()
    return [(a, b) for a, b in pairwise(lines) if b.who in HER and a.who not in HER and a.scene == b.scene]


def test_there_is_enough_to_learn_from() -> None:
    headings, lines, _ = read()
    scenes = [heading for heading in headings if "（续）" not in heading]
    speakers = Counter("甄嬛" if line.who in HER else line.who for line in lines)
    with_exchange = {reply.scene for _, reply in exchanges()}
    assert len(scenes) >= 50
    assert len(lines) >= 760
    assert speakers["甄嬛"] >= 310
    assert len([name for name, count in speakers.items() if count >= 15]) >= 9
    assert len(with_exchange) >= 46


def test_only_the_planned_lines_have_no_label() -> None:
    _, _, others = read()
    assert [re.sub(r"^\S+ ", "", line)[:4] for line in others] == ["旁白：兰", "世上最老", "两张一对"]


def test_no_two_replies_and_no_two_prompts_of_hers_are_the_same() -> None:
    _, lines, _ = read()
    replies = Counter(line.text for line in lines if line.who in HER)
    prompts = Counter(prompt.text for prompt, _ in exchanges())
    assert len(exchanges()) >= 300
    assert [text for text, count in replies.items() if count > 1] == []
    assert [text for text, count in prompts.items() if count > 1] == []


def test_lines_are_of_speaking_length() -> None:
    _, lines, _ = read()
    lengths = [len(line.text) for line in lines]
    assert max(lengths) <= 45
    assert sum(8 <= length <= 35 for length in lengths) / len(lengths) > 0.9


def test_six_starters_are_distinct_from_the_identity_questions() -> None:
    questions = {question for identity in PERSONA.identity for question in identity.questions}
    assert len(PERSONA.starters) == 6
    assert not questions & set(PERSONA.starters)


@pytest.mark.parametrize("starter", PERSONA.starters)
def test_a_starter_opens_its_scene_and_her_one_line_follows(starter: str) -> None:
    everything = "".join(plain(name) for name in FILES)
    assert everything.count(starter) == 1
    rows = [line.strip() for name in EPISODES for line in plain(name).splitlines() if line.strip()]
    at = next(i for i, row in enumerate(rows) if row.endswith(starter))
    heading, direction, asked, answered, after = rows[at - 2 : at + 3]
    assert HEADING.fullmatch(heading)
    assert DIRECTION.fullmatch(direction)
    who, _, said = asked.partition("：")
    assert (said, who in HER) == (starter, False)
    who, _, reply = answered.partition("：")
    assert who == "甄嬛"
    assert 12 <= len(reply) <= 40
    assert not DIRECTION.search(reply)
    assert after.partition("：")[0] not in HER


@pytest.mark.parametrize(
    ("quirk", "pattern"),
    [
        ("；after a label", rf"^(?:{CAST})；"),
        ("，after a label", rf"^(?:{CAST})，"),
        ("？after a label", rf"^(?:{CAST})？"),
        ("a half-width colon after a label", r"^小墩子:"),
        ("a half-width colon after her label", r"^甄嬛:"),
        ("an episode heading", r"\A第一集$"),
        ("a direction opening a scene", r"^第\d+幕\n\n?（"),
        ("a direction of its own inside a scene", r"^\S+：.+\n\n?（[^：\n]+）\n\n?\S+："),
        ("continued after an episode cut", r"\A第二集\n\n第9幕（续）$"),
        ("continued after a cutaway", r"^第12幕\n[\s\S]+^第13幕\n[\s\S]+^第12幕（续）$"),
        ("a heading with a colon", r"^第9幕：$"),
        ("a heading with a wrong last character", r"^第\d+秒$"),
        ("a heading with a stray comma", r"^第610,幕$"),
        ("a heading without a number", r"^【另分一幕】$"),
        ("a heading of the other word", r"^第\d+场$"),
        ("a heading of episode and scene", r"^\d-\d$"),
        ("a heading of screenwriting software", r"^INT\. .+ - DAY$"),
        ("a scene number used twice", r"^(第15幕)\n[\s\S]+^\1$"),
        ("a scene number used twice in a row", r"^(第44幕)\n[\s\S]+^\1$"),
        ("a line without a label", r"^\u3000\u3000世上最老实的账，"),
        ("a line without a label that looks like one", r"^皇帝：.+\n两张一对，"),
        ("brackets after a name", rf"^(?:{CAST})（[^）]+）："),
        ("half-width brackets after a name", r"^绮妃\(冷笑\)："),
        ("a direction at the start of her speech", r"^甄嬛：（"),
        ("a direction inside a speech", r"^老葛：小主？（[^）]+）\S"),
        ("a direction at the end of her speech", r"^甄嬛：.+（[^）]+）$"),
        ("a direction at the end of a prompt", r"^皇帝：.+（[^）]+）\n甄嬛："),
        ("a direction in 【】 inside a speech", r"^小墩子：主子【[^】]+】，"),
        ("a direction in 【】 at the end of her speech", r"^甄嬛：.+【[^】]+】$"),
        ("a direction in half-width brackets", r"^甄嬛：[^\n]+\([^)]+\)。\S"),
        ("a bracket that opens half-width and closes full-width", r"^豆蔻：\([^()（）\n]+）"),
        ("a bracket that opens full-width and closes half-width", r"^豆蔻：（[^()（）\n]+\)"),
        ("an unbalanced bracket", r"^卞总管：[^\n）]+（[^）\n]+$"),
        ("inline brackets with somebody's speech", r"^甄嬛：.+（豆蔻：是）"),
        ("inline brackets with her speech", r"^皇帝：.+（嬛嬛：[^）]+）"),
        ("brackets of their own with somebody's speech", r"^（秋砚：[^）]+）$"),
        ("a colon inside her speech", r"^甄嬛：[^：\n]+：\S"),
        ("a colon inside a prompt", r"^常公公：[^：\n]+：.+\n甄嬛："),
        ("glued labels", r"^甄嬛陆晚照："),
        ("joined labels with her", r"^甄嬛、陆晚照："),
        ("joined labels without her", r"^秋砚、豆蔻："),
        ("众人", r"^众人："),
        ("众", r"^众："),
        ("三人", r"^三人："),
        ("a narrator", r"^旁白："),
        ("a note in 【】", r"^【此处接第四集】$"),
        ("her pet name as a label", r"^嬛嬛："),
        ("her first rank as a label", r"^莞常在："),
        ("her second rank as a label", r"^莞贵人："),
        ("her third rank as a label", r"^莞嫔："),
        ("a space before the colon", r"^秋砚 ："),
        ("a space before the colon of hers", r"^甄嬛 ："),
        ("a full-width space before the colon", r"^裴太医\u3000："),
        ("a no-break space", r"^陆晚照\u00a0："),
        ("a zero-width space in her label", r"^甄\u200b嬛："),
        ("a wrong character in another's label", r"^陆晚昭："),
        ("a wrong character in her label", r"^甄媛："),
        ("consecutive lines of hers", r"^甄嬛：.+\n甄嬛："),
        ("consecutive lines of hers across a direction", r"^甄嬛：.+\n（[^）]+）\n甄嬛："),
        ("six turns before her entrance", r"^第26幕\n（[^）]+）\n(?:(?!甄嬛)\S+：.+\n){6}（甄嬛[^）]+）\n甄嬛："),
        ("a scene that she opens", r"^第\d+幕\n\n?（[^）]+）\n\n?甄嬛："),
        ("a voice-over of hers", r"^甄嬛（V\.O\.）："),
        ("her speech marked as continued", r"^甄嬛（CONT'D）："),
        ("a tab after a label", r"^小墩子：\t"),
        ("a label in 【】", r"^【秋砚】："),
        ("a label in bold", r"^\*\*老葛\*\*："),
        ("a speech in quotes", r"^裴太医：“[^”]+”$"),
        ("a line number", r"^\d+\. 老葛："),
        ("a timestamp", r"^\[\d\d:\d\d:\d\d\] 小墩子："),
        ("a name on a line of its own", r"^甄嬛\n\S"),
        ("a wrapped speech", r"^甄嬛\n\S+\n\S+\n\n"),
        ("NAME: text", r"^FATHER LUCAS: [A-Z].+\nINTERPRETER: .+\nZHEN HUAN: "),
        ("an action after NAME", r"^FATHER LUCAS \([a-z]+\): "),
        ("a numbered English heading", r"^SCENE 1\. .+$"),
        ("a title page", r"\ATitle: .+\nCredit: .+\n\n"),
        ("Fountain: NAME above the speech", r"^\nZHEN HUAN\n\S.+\n\n"),
        ("Fountain: NAME (beat) above the speech", r"^\nZHEN HUAN \([a-z ]+\)\n\S.+\n\n"),
        ("Fountain: a beat on its own line", r"^\n[A-Z ]+\n\([a-z ]+\)\n\S.+\n\n"),
        ("Fountain: (V.O.)", r"^ZHEN HUAN \(V\.O\.\)\n\S"),
        ("Fountain: (CONT'D) after an action", r"^ZHEN HUAN\n\S.+\n\n[A-Z].+\.\n\nZHEN HUAN \(CONT'D\)\n\S"),
    ],
)
def test_the_script_has_the_quirk(quirk: str, pattern: str) -> None:
    assert any(re.search(pattern, plain(name), re.MULTILINE) for name in FILES), quirk


def test_one_file_has_nothing_but_blank_lines_between_its_scenes() -> None:
    scenes = plain(SEASONS).split("\n\n")
    assert len(scenes) == 4
    for scene in scenes:
        opening, *lines = scene.strip().split("\n")
        assert DIRECTION.fullmatch(opening)
        assert all(line.partition("：")[2] for line in lines)
        assert any(line.startswith("甄嬛：") for line in lines)


def test_some_scenes_are_without_her() -> None:
    headings, lines, _ = read()
    assert len(set(headings) - {line.scene for line in lines if line.who in HER}) >= 5


def scene_of(number: int) -> str:
    """The text of the scenes with this number."""
    everything = "\n".join(plain(name) for name in EPISODES)
    return "".join(re.findall(rf"^第{number}幕\n((?:(?!第\d).*\n)+)", everything, re.MULTILINE))


def test_the_emperor_counts_five_proofs_and_they_are_five() -> None:
    proofs = re.findall(r"^\S+：([一二三四五])，(.+)$", scene_of(44), re.MULTILINE)
    assert [numeral for numeral, _ in proofs] == list("一二三四五")
    for thing in ("底单", "库账", "竹签", "验单", "手"):
        assert len([text for _, text in proofs if thing in text]) == 1, thing


def test_the_five_days_are_over_when_they_are_said_to_be() -> None:
    said = re.findall("第?[一二三四五六七八九十]日", "".join(map(scene_of, (43, 44, 45))))
    assert said == ["五日"] * 3


def test_ranks_are_kept_in_address() -> None:
    _, lines, _ = read()
    present: dict[str, set[str]] = {}
    for line in lines:
        present.setdefault(line.scene, set()).add(line.who)
    # To a consort above her she is 嫔妾; 臣妾 is for the emperor and his mother, and for who hears them.
    wrong = [
        reply.place
        for prompt, reply in exchanges()
        if prompt.who in ("绮妃", "慎嫔") and not present[reply.scene] & {"皇帝", "太后"} and "臣妾" in reply.text
    ]
    assert wrong == []
    assert not any("绮妃妹妹" in line.text for line in lines)


def test_encodings_differ_between_files() -> None:
    data = {name: (SCRIPT / name).read_bytes() for name in FILES}
    assert {name for name in FILES if data[name].startswith(codecs.BOM_UTF8)} == {"第五集.txt"}
    assert {name for name in FILES if data[name].startswith(codecs.BOM_UTF16_LE)} == {"第四集.txt"}
    assert {name for name in FILES if data[name].startswith(b"PK")} == {CODA}
    # A character outside GBK, as in files that only look like it.
    with pytest.raises(UnicodeDecodeError):
        data["第二集.txt"].decode("gbk")
    with pytest.raises(UnicodeDecodeError):
        data["第二集.txt"].decode("utf-8")


def test_line_ends_differ_between_files() -> None:
    texts = {name: raw(name) for name in FILES if name != CODA}
    assert {name for name, text in texts.items() if "\r\n" in text} == {"第三集.txt"}
    assert {name for name, text in texts.items() if "\r" in text and "\n" not in text} == {"第六集.txt"}
    assert "\n" not in texts["第三集.txt"].replace("\r\n", "")


def test_the_readme_names_every_file_and_counts_the_scenes() -> None:
    headings, _, _ = read()
    chinese, _, english = (DATA / "README.md").read_text("utf-8").partition("\n---\n")
    scenes = len([heading for heading in headings if "（续）" not in heading])
    assert f"六集 {scenes} 场" in chinese
    assert f"Six episodes of {scenes} scenes" in english
    for half in (chinese, english):
        assert [name for name in ("persona.toml", *FOLDER_FILES) if name not in half] == []


def test_the_folder_holds_the_episodes_and_what_comes_after_them_only() -> None:
    assert {path.name for path in SCRIPT.iterdir()} == set(FILES)
