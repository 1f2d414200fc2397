"""``report.html``: a conversion report to read, in one file that opens offline.

The page holds no JavaScript, and its policy forbids any: a script's text is only ever shown.

Measured on one core for a 2 MB script (1,780 scenes, 15,000 places left out): 0.25 s of which 0.2 s are the
imports of Jinja and pygal, and 125 kB. So it is for a folder with reports; whoever wants nothing but records in
the shortest time should not have it drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from huanhuan.dataset.report import REASONS, Report
from huanhuan.text.model import Skipped

# What a page shows of long lists; report.json holds them whole.
SHOWN_PER_REASON = 100
SHOWN_SPEAKERS = 100
CHARTED_SPEAKERS = 15

_COUNTS = {
    "lines": "行 / lines",
    "speeches": "句台词 / speeches",
    "scenes": "场 / scenes",
    "scenes_with_character": "场有该角色 / scenes with the character",
    "character_speeches": "句该角色的台词 / of the character's speeches",
    "character_turns": "轮该角色的话 / turns of the character",
    "pairs": "组对话 / exchanges found",
    "exchanges": "组写入 / exchanges written",
    "records": "条记录 / records",
    "identity": "条身份问答 / identity records",
    "directions": "处舞台提示 / stage directions",
}
_LENGTHS = {
    "prompt": "提问的字数 / characters in a prompt",
    "reply": "回复的字数 / characters in a reply",
    "record": "一条记录的字数 / characters in a record",
    "prompt_tokens": "提问的 token 数 / tokens in a prompt",
    "reply_tokens": "回复的 token 数 / tokens in a reply",
    "record_tokens": "一条记录的 token 数 / tokens in a record",
}


def render_report(report: Report) -> str:
    """The page as HTML text, the same for the same report."""
    from jinja2 import Environment, StrictUndefined

    from huanhuan.dataset.charts import length_chart, speaker_chart

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("huanhuan.dataset").joinpath("report.html.j2").read_text("utf-8"))
    charted = report.speakers[:CHARTED_SPEAKERS]
    return template.render(
        report=report,
        counts=[(report.counts[key], label) for key, label in _COUNTS.items() if key in report.counts],
        lengths=[
            (_LENGTHS.get(key, key), lengths, length_chart(lengths, f"length-{number}") if lengths.total else "")
            for number, (key, lengths) in enumerate(report.lengths.items())
        ],
        speakers=_speakers(report),
        speaker_chart=speaker_chart(charted, "speakers") if charted else "",
        skipped=_by_reason(report),
        options=[(key, _option(value)) for key, value in report.options.items()],
        place=_place,
        source=_source,
    )


def _speakers(report: Report) -> list[Any]:
    """The most frequent speakers, and every other that is the character or looks like somebody."""
    return [
        each
        for number, each in enumerate(report.speakers)
        if number < SHOWN_SPEAKERS or each.is_character or each.look_alikes
    ]


def _by_reason(report: Report) -> list[tuple[str, int, list[Skipped]]]:
    """What each reason is called, how often it applies and the first places, the most frequent first."""
    places: defaultdict[str, list[Skipped]] = defaultdict(list)
    for each in report.skipped:
        if len(places[each.reason]) < SHOWN_PER_REASON:
            places[each.reason].append(each)
    counts = {reason: count for reason, count in report.skipped_counts.items() if count}
    return [
        (REASONS.get(reason, reason), counts[reason], places[reason])
        for reason in sorted(counts, key=lambda reason: -counts[reason])
    ]


def _place(file: str, first: int, last: int | None = None) -> str:
    """``a.txt:3`` or ``a.txt:3–5``."""
    return f"{file}:{first}" if last is None or last == first else f"{file}:{first}–{last}"


def _source(record: dict[str, Any]) -> str:
    source = record.get("source")
    return _place(source["file"], *source["lines"]) if source else ""


def _option(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "、".join(map(str, value)) or "—" if isinstance(value, Iterable) else str(value)
