"""The report page: everything of the report is there, nothing of a script is ever markup."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huanhuan.dataset.report import REASONS, FileStats, Part, Report, SpeakerStats, lengths_of
from huanhuan.dataset.report_html import CHARTED_SPEAKERS, SHOWN_PER_REASON, SHOWN_SPEAKERS, render_report
from huanhuan.text.model import Skipped

EVIL = "<script>alert('嬛')</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}{% raw %}&lt;"


def a_report(text: str = "陆晚照", **more: Any) -> Report:
    values = {
        "character": text,
        "names": (text, "嬛嬛"),
        "options": {"encoding": text, "budget": 1500, "filters_off": [], "single_turn": False},
        "files": (FileStats(text, "gb18030", "colon", 1244, 865, 58),),
        "counts": {"lines": 1244, "speeches": 865, "scenes": 58, "pairs": 359, "exchanges": 370, "records": 63},
        "speakers": (
            SpeakerStats(text, 345, "第一集.txt", 6, True, (f"{text}甲",)),
            SpeakerStats("众人", 2, "a.txt", 97),
        ),
        "lengths": {"reply": lengths_of([1, 2, 2, 30]), "reply_tokens": lengths_of([5, 6], "tokens")},
        "skipped_counts": {"short": 1, "direction": 2},
        "skipped": (
            Skipped("a.txt", 3, 3, "direction", text),
            Skipped("a.txt", 7, 9, "direction", "起身"),
            Skipped(text, 11, 11, "short", text),
        ),
        "samples": (
            {
                "conversation": [{"system": "甲", "input": text, "output": "回"}],
                "source": {"file": text, "lines": [3, 8]},
            },
            {"conversation": [{"input": "问", "output": text}]},
        ),
        "split": (Part("train", 43, 55, 322, 11), Part("val", 8, 8, 48)),
        "warnings": (text,),
    }
    return Report(**{**values, **more})


class Page(HTMLParser):
    """Elements, attributes and visible text of a page; complains about tags that do not match."""

    VOID = frozenset(["meta", "br", "hr"])

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = "\n".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data.strip())


def test_what_the_page_says():
    page = Page(render_report(a_report()))
    for words in (
        "陆晚照、嬛嬛",
        "1,244",
        "组对话 / exchanges found",
        "train",
        "第一集.txt:6",
        "陆晚照甲",
        "a.txt:3",
        "a.txt:7–9",
        "陆晚照:11",
        "陆晚照:3–8",
        "起身",
        REASONS["short"],
        REASONS["direction"],
        "回复的 token 数 / tokens in a reply",
        "gb18030",
        "1500",
    ):
        assert words in page.texts or any(words in text for text in page.texts), words
    assert page.tags.count("article") == 2
    assert page.tags.count("svg") == 3
    # The most frequent reason first.
    assert page.text.index(REASONS["direction"]) < page.text.index(REASONS["short"])


def test_text_of_a_script_is_never_markup():
    plain, evil = Page(render_report(a_report())), Page(render_report(a_report(EVIL)))
    assert evil.tags == plain.tags
    assert "script" not in evil.tags
    assert "img" not in evil.tags
    assert [name for name, _ in evil.attributes] == [name for name, _ in plain.attributes]
    assert not [name for name, _ in evil.attributes if name.startswith("on")]
    assert evil.text.count(EVIL) >= 10


def test_it_opens_offline_and_runs_nothing():
    html = render_report(a_report(EVIL))
    page = Page(html)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert set(re.findall(r"https?://[^\"'\s<)]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in html
    assert "url(" not in html


def test_the_same_report_gives_the_same_page():
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); from test_report_html import a_report;"
        "from huanhuan.dataset.report_html import render_report;"
        "assert not {'torch', 'numpy', 'plotly', 'matplotlib'} & sys.modules.keys();"
        "print(hashlib.sha256(render_report(a_report()).encode()).hexdigest())"
    )
    folder = __file__.rpartition("test_report_html")[0]
    command = [sys.executable, "-c", code, folder]
    one, other = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert one == other
    assert len(one.strip()) == 64


def test_a_bar_for_each_bin_with_its_count():
    lengths = lengths_of([1, 2, 2, 30], bins=8)
    html = render_report(a_report(lengths={"reply": lengths}, speakers=()))
    tooltips = re.findall(r"<title>(\d+)–(\d+): (\d+)</title>", html)
    assert [(int(start), int(end) + 1, int(count)) for start, end, count in tooltips] == [
        (start, end, count)
        for start, end, count in zip(lengths.edges[:-1], lengths.edges[1:], lengths.counts, strict=True)
        if count
    ]
    heights = [float(height) for height in re.findall(r'<rect[^>]*height="([\d.]+)"[^>]*class="rect reactive', html)]
    assert len(heights) == len(tooltips) == 2
    assert heights[0] == pytest.approx(3 * heights[1])


def test_the_character_stands_out_among_the_speakers():
    speakers = tuple(
        SpeakerStats(f"人{number}", 100 - number, "a.txt", number + 1, is_character=number == 3) for number in range(30)
    )
    html = render_report(a_report(speakers=speakers, lengths={}))
    chart = html[html.index("<svg") : html.index("</svg>")]
    assert re.findall(r"<title>(.*?)</title>", chart) == [
        f"人{n}: {100 - n}" for n in reversed(range(CHARTED_SPEAKERS))
    ]
    assert chart.count("fill: var(--bar-strong)") == 1
    assert re.findall(r">(人\d+)</text>", chart) == [f"人{n}" for n in reversed(range(CHARTED_SPEAKERS))]


def test_long_lists_are_cut_and_say_so():
    speakers = tuple(
        SpeakerStats(f"人{number}", 1, "a.txt", number + 1, look_alikes=("人",) if number == 900 else ())
        for number in range(1000)
    )
    skipped = tuple(Skipped("a.txt", number, number, "short", "嗯") for number in range(1, 5001))
    html = render_report(a_report(speakers=speakers, skipped=skipped, skipped_counts={"short": 5000}))
    assert html.count("<td>嗯</td>") == SHOWN_PER_REASON
    assert f"另有 {5000 - SHOWN_PER_REASON} 处" in html
    assert f"另有 {1000 - SHOWN_SPEAKERS - 1} 个" in html
    assert "<td>人900</td>" in html
    assert len(html) < 200_000


def test_a_report_of_nothing_is_a_page():
    page = Page(
        render_report(
            a_report(
                speakers=(),
                lengths={"reply": lengths_of([])},
                skipped=(),
                skipped_counts={},
                samples=(),
                files=(),
                split=(),
                warnings=(),
                counts={},
                options={},
            )
        )
    )
    assert "svg" not in page.tags
    assert "没有 / nothing" in page.texts


def test_a_report_read_from_its_file_gives_the_same_page():
    report = a_report()
    assert render_report(Report.from_json(report.to_json())) == render_report(report)


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: bool(text.strip())))
@settings(deadline=None, max_examples=60)
def test_no_text_makes_it_crash_or_changes_the_structure(text):
    report = a_report(text)
    page = Page(render_report(report))
    assert page.tags == Page(render_report(a_report())).tags
