"""Curves as they are read from logs and drawn."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager

from huanhuan.errors import UserError
from huanhuan.training import curves
from huanhuan.training.curves import Curves, plot, read_curves


def write_run(work_dir: Path, name: str, rows: list[dict[str, Any]], end: str = "\n") -> Path:
    file = work_dir / name / "vis_data" / "scalars.json"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(map(json.dumps, rows)) + end, "utf-8")
    return file


def steps(first: int, last: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"loss": loss + step, "lr": 1e-4, "tokens_per_second": 9.0, "step": step} for step in range(first, last + 1)
    ]


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path, "20260101_000001", [*steps(1, 5), {"held_out/loss": 3.0, "step": 5}])
    write_run(tmp_path, "20260101_000002", steps(4, 8, loss=100.0))
    found = read_curves(tmp_path)
    assert found.runs == 2
    assert found.series("loss") == ([*range(1, 9)], [2.0, 3.0, 4.0, 104.0, 105.0, 106.0, 107.0, 108.0])
    assert found.series("held_out/loss") == ([], [])


def test_a_run_that_began_anew_replaces_everything(tmp_path: Path) -> None:
    write_run(tmp_path, "20260101_000001", steps(1, 9))
    write_run(tmp_path, "20260101_000002", steps(1, 2, loss=7.0))
    assert read_curves(tmp_path).series("loss") == ([1, 2], [8.0, 9.0])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.data())
def test_joined_runs_have_every_step_once(lengths: list[int], data: st.DataObject) -> None:
    joined, last = Curves(), 0
    for run, length in enumerate(lengths):
        first = data.draw(st.integers(1, last + 1)) if run else 1
        joined.add(steps(first, first + length - 1, loss=run * 1000.0))
        last = first + length - 1
    found, values = joined.series("loss")
    assert found == list(range(1, last + 1))
    assert values[-1] == pytest.approx((len(lengths) - 1) * 1000 + last)


def test_the_last_line_of_a_killed_run_may_be_cut(tmp_path: Path) -> None:
    write_run(tmp_path, "20260101_000001", steps(1, 3), end='\n{"loss": 4.0, "st')
    assert read_curves(tmp_path).series("loss")[0] == [1, 2, 3]


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [{"loss": 1.0, "step": 1}, {"loss": math.nan, "step": 2}, {"loss": math.inf, "step": 3}])
    assert read_curves(tmp_path).series("loss") == ([1], [1.0])


def test_transformers_trainer_is_read_too(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    history = [{"loss": 2.0, "learning_rate": 1e-3, "step": 1, "epoch": 0.5}, {"eval_loss": 1.5, "step": 2}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}), "utf-8")
    found = read_curves(tmp_path)
    assert found.series("lr") == ([1], [1e-3])
    assert found.series("held_out/loss") == ([2], [1.5])


def test_every_bad_line_is_told_at_once(tmp_path: Path) -> None:
    file = write_run(tmp_path, "a", steps(1, 2))
    file.write_text('{"loss": 1, "step": 1}\nno json\n[1]\n{"loss": 1, "step": 2}\n', "utf-8")
    with pytest.raises(UserError) as caught:
        read_curves(tmp_path)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [f"{file}:2", f"{file}:3"]


def test_nothing_logged_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=folder.name):
            read_curves(folder)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
@pytest.mark.parametrize("font", [None, "installed"])
def test_pictures(tmp_path: Path, suffix: str, magic: bytes, font: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if font is None:
        monkeypatch.setattr(curves, "chinese_font", lambda: None)
    elif curves.chinese_font() is None:
        pytest.skip("no font with Chinese here")
    write_run(tmp_path, "a", [*steps(1, 60), {"held_out/loss": 3.0, "held_out/perplexity": math.e**3, "step": 60}])
    out = tmp_path / f"curves{suffix}"
    plot(tmp_path, out)
    assert out.read_bytes().startswith(magic)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_labels_are_chinese_only_where_a_font_has_them(monkeypatch: pytest.MonkeyPatch, recwarn: Any) -> None:
    drawn = Curves()
    drawn.add(steps(1, 3))
    monkeypatch.setattr(curves, "chinese_font", lambda: None)
    figure = curves.draw(drawn, "嬛")
    figure.savefig(io.BytesIO())
    titles = [axes.get_title() for axes in figure.axes]
    assert all(title.isascii() for title in titles), titles
    assert not [each for each in recwarn if "Glyph" in str(each.message)]


def test_a_font_installed_after_matplotlib_made_its_list_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = font_manager.fontManager.ttflist
    mono = next(font for font in listed if font.name == "DejaVu Sans Mono")
    new = tmp_path / "new.ttf"
    shutil.copy(Path(matplotlib.get_data_path()) / "fonts/ttf" / Path(mono.fname).name, new)
    (tmp_path / "none.ttf").write_bytes(b"no font")
    monkeypatch.setattr(curves, "CJK_FONTS", ("Other", "DejaVu Sans Mono"))
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [font for font in listed if font.name != mono.name])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "none.ttf")])
    assert curves.chinese_font() is None
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "none.ttf"), str(new)])
    assert curves.chinese_font() == "DejaVu Sans Mono"
    assert font_manager.findfont("DejaVu Sans Mono", fallback_to_default=False) == str(new)


def test_an_unknown_kind_of_picture_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bmp"):
        plot(tmp_path / "gone", tmp_path / "curves.bmp")
