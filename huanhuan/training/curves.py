"""The curves of a training run, read from what it logged and drawn to a picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huanhuan.errors import UserError, os_error_line
from huanhuan.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
# Fonts that hold Chinese, by system: Linux, Windows, macOS.
CJK_FONTS = (
    "Noto Sans CJK SC",
    # matplotlib reads the first face of a collection; every face holds all characters.
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
)
# What Transformers' Trainer calls what mmengine logs.
TRAINER_NAMES = {
    "learning_rate": "lr",
    "eval_loss": "held_out/loss",
    "eval_perplexity": "held_out/perplexity",
    "train_tokens_per_second": "tokens_per_second",
}


@dataclass
class Curves:
    """Values by step; ``runs`` counts the runs they were joined from."""

    values: dict[str, dict[int, float]] = field(default_factory=dict)
    runs: int = 0

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Join a later run: from its first step on it replaces what was logged before.

        A run that resumed at step 40 keeps steps 1 to 40 of the one before; one that began anew keeps nothing.
        """
        rows = [row for row in rows if isinstance(row.get("step"), int)]
        if not rows:
            return
        first = min(row["step"] for row in rows)
        self.values = {
            name: {step: value for step, value in series.items() if step < first}
            for name, series in self.values.items()
        }
        for row in rows:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step":
                    self.values.setdefault(name, {})[row["step"]] = float(value)
        self.runs += 1

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of ``name`` in order, without what is no finite number."""
        points = sorted((step, value) for step, value in self.values.get(name, {}).items() if math.isfinite(value))
        return [step for step, _ in points], [value for _, value in points]


def read_curves(work_dir: Path) -> Curves:
    """Everything the runs in ``work_dir`` logged, resumed runs joined.

    Raises: UserError if there is nothing, or for every line that cannot be read.
    """
    if not work_dir.is_dir():
        raise UserError(f"{work_dir}: 没有这个目录 / no such folder: give a work dir such as work_dirs/huanhuan_qlora")
    curves, problems = Curves(), []
    # A run's folder is named by the time it began.
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        curves.add(_read_lines(file, problems))
    if not curves.runs:
        for file in sorted(work_dir.glob("checkpoint-*/trainer_state.json"), key=lambda each: each.stat().st_mtime):
            curves.add(_read_trainer_state(file, problems))
        if (work_dir / "trainer_state.json").is_file():
            curves.add(_read_trainer_state(work_dir / "trainer_state.json", problems))
    if problems:
        raise UserError(problems)
    if not curves.values.get("loss"):
        raise UserError(
            f"{work_dir}: 没有训练日志 / no training log (*/vis_data/scalars.json): "
            "先训练，或换一个目录 / train first, or give another folder"
        )
    return curves


def _read_lines(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    rows = []
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error if isinstance(error, OSError) else OSError(str(error))
        problems.append(os_error_line(file, reason, "移走它再试 / move it away and run again"))
        return []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {}
            if not isinstance(row, dict):
                raise ValueError("not an object")
            rows.append(row)
        except ValueError as error:
            # A run that was killed may have been writing its last line.
            if number < len(lines):
                problems.append(f"{file}:{number}: 不是 JSON / is not JSON ({error}): 删掉这一行 / delete the line")
    return rows


def _read_trainer_state(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        history = json.loads(file.read_text("utf-8"))["log_history"]
        return [{TRAINER_NAMES.get(str(name), str(name)): value for name, value in row.items()} for row in history]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(f"{file}: 读不了 / cannot be read ({type(error).__name__}: {error}): 移走它再试 / move it away")
        return []


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, ``window`` at most.

    >>> smooth([1.0, 3.0, 5.0], window=2)
    [1.0, 2.0, 4.0]
    """
    means = []
    for index in range(len(values)):
        recent = values[max(0, index + 1 - window) : index + 1]
        means.append(sum(recent) / len(recent))
    return means


def draw(curves: Curves, title: str) -> Figure:
    """Loss, perplexity, learning rate and speed over the steps, in one figure."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    font = chinese_font()

    def say(chinese: str, english: str) -> str:
        return f"{chinese} / {english}" if font else english

    with rc_context({"font.family": [font, "DejaVu Sans"] if font else ["DejaVu Sans"], "axes.unicode_minus": False}):
        figure = Figure(figsize=(11, 7), layout="constrained")
        axes = figure.subplots(2, 2)
        figure.suptitle(title if font or title.isascii() else "training")
        loss, perplexity, rate, speed = axes.flat
        _loss_panel(loss, curves, say)
        best = _panel(perplexity, curves, "held_out/perplexity", say("留出集困惑度", "held-out perplexity"), marker="o")
        if best:
            step, value = min(best, key=lambda point: point[1])
            perplexity.annotate(
                f"{value:.4g} @ {step}", (step, value), ha="right", textcoords="offset points", xytext=(-4, 6)
            )
        _panel(rate, curves, "lr", say("学习率", "learning rate"))
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        _panel(speed, curves, "tokens_per_second", say("每秒 token 数（每个进程）", "tokens per second, of a process"))
        for each in axes.flat:
            each.xaxis.set_major_locator(MaxNLocator(integer=True))
        for each in (rate, speed):
            each.set_xlabel(say("步", "step"))
    return figure


def _loss_panel(axes: Axes, curves: Curves, say: Any) -> None:
    steps, values = curves.series("loss")
    axes.plot(steps, values, color="C0", alpha=0.3, linewidth=0.8)
    # A short run's few points are means over the log's interval already.
    axes.plot(steps, smooth(values, max(1, len(values) // 20)), color="C0", label=say("训练", "training"))
    steps, values = curves.series("held_out/loss")
    if steps:
        axes.plot(steps, values, "o-", color="C1", label=say("留出集", "held out"))
    axes.set_title(say("损失", "loss"))
    axes.legend()
    axes.grid(alpha=0.3)


def _panel(axes: Axes, curves: Curves, name: str, title: str, marker: str = "") -> list[tuple[int, float]]:
    """One curve; an empty panel says that it was not logged."""
    steps, values = curves.series(name)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if steps:
        axes.plot(steps, values, marker=marker)
        axes.set_xlim(left=0)
    else:
        axes.text(0.5, 0.5, "—", ha="center", va="center", transform=axes.transAxes)
    return list(zip(steps, values, strict=True))


def chinese_font() -> str | None:
    """The name of an installed font that holds Chinese, None if there is none."""
    from matplotlib.font_manager import fontManager

    found = _first_of_ours(font.name for font in fontManager.ttflist)
    return found or _first_of_ours(_new_fonts())


def _first_of_ours(names: Iterable[str]) -> str | None:
    installed = set(names)
    return next((name for name in CJK_FONTS if name in installed), None)


def _new_fonts() -> Iterator[str]:
    """The fonts that were installed after matplotlib made its list, which it keeps on disk and never renews."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {font.fname for font in fontManager.ttflist}
    for file in findSystemFonts():
        if file not in known:
            # FreeType refuses what is no font, bitmaps for instance.
            with suppress(RuntimeError, OSError):
                fontManager.addfont(file)
                yield fontManager.ttflist[-1].name


def plot(work_dir: Path, out: Path) -> Curves:
    """Draw the curves of ``work_dir`` to ``out``; returns them.

    Raises: UserError as :func:`read_curves`, and for an ``out`` that is no kind of picture.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"{out}: 不认识的图片格式 / unknown kind of picture: use {', '.join(SUFFIXES)}")
    curves = read_curves(work_dir)
    picture = io.BytesIO()
    draw(curves, work_dir.resolve().name).savefig(picture, format=out.suffix[1:].lower(), dpi=130)
    write_bytes(out, picture.getvalue())
    return curves
