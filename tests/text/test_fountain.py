"""Screenplays: what stands around a name and a speech, and what is neither."""

from __future__ import annotations

import pytest

from huanhuan.text.labels import Speakers
from huanhuan.text.model import Direction, Script
from huanhuan.text.reader import parse_text

OPENING = "INT. HALL - DAY\n\nANNA\nWho is there?\n\nBEN\nOnly me.\n\n"


def read(text: str) -> Script:
    return parse_text(text, "a.fountain", Speakers(["ANNA"]), layout="fountain")


@pytest.mark.parametrize(
    ("block", "spoken", "staged"),
    [
        ("ANNA\nSit down.", "Sit down.", "Sit down."),
        ("ANNA (V.O.)\nSit down.", "Sit down.", "Sit down."),
        ("ANNA (CONT'D)\nSit down.", "Sit down.", "Sit down."),
        ("ANNA (softly)\nSit down.", "Sit down.", "（softly）Sit down."),
        ("ANNA\n(softly)\nSit down.", "Sit down.", "（softly）Sit down."),
        ("ANNA\nSit (points) down.", "Sit down.", "Sit（points）down."),
        ("ANNA\nSit (points） down.", "Sit down.", "Sit（points）down."),
        ("ANNA\nSit\ndown.", "Sit down.", "Sit down."),
        ("ANNA\n*Sit* _down_.", "Sit down.", "Sit down."),
        ("ANNA\n~Sit down.", "Sit down.", "Sit down."),
        ("ANNA ^\nSit down.", "Sit down.", "Sit down."),
        ("ANNA\nSit [[twice]] down.", "Sit down.", "Sit down."),
        ("ANNA\n“Sit down.”", "Sit down.", "Sit down."),
        ("ANNA\n“Sit\n(points)\ndown.”", "Sit down.", "Sit（points）down."),
        ("ANNA\n“Sit” is a short word.", "“Sit” is a short word.", "“Sit” is a short word."),
    ],
)
def test_a_speech(block: str, spoken: str, staged: str) -> None:
    speech = read(OPENING + block + "\n").scenes[0].speeches[-1]
    assert (speech.speakers, speech.text, speech.staged) == (("ANNA",), spoken, staged)


@pytest.mark.parametrize(
    "block", ["Anna sits down.", "!ANNA\nSit down.", "CUT TO:", "> Centred <", "= A synopsis", "[[note]]"]
)
def test_what_nobody_says(block: str) -> None:
    scene = read(f"{OPENING}{block}\n").scenes[0]
    assert [speech.text for speech in scene.speeches] == ["Who is there?", "Only me."]


@pytest.mark.parametrize("block", ["ANNA\n~", "ANNA\n(sits down)", "ANNA\n[[later]]", "ANNA\n“”"])
def test_a_cue_without_words_is_listed(block: str) -> None:
    script = read(f"{OPENING}{block}\n")
    assert len(script.scenes[0].speeches) == 2
    assert [(item.line, item.reason) for item in script.skipped if item.reason == "empty"] == [(9, "empty")]


def test_a_title_page_is_no_speech_and_action_is_a_direction() -> None:
    script = read(f"Title: The Bulbs\nAuthor: Nobody\n\n{OPENING}Ben bows.\n")
    assert [item.text for item in script.skipped] == ["Title: The Bulbs", "Author: Nobody"]
    last = script.scenes[0].items[-1]
    assert isinstance(last, Direction)
    assert last.text == "Ben bows."
