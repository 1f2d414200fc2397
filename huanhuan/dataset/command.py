"""The command line of the converter: options checked, files written, a summary given back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from huanhuan.dataset.conversations import CutOptions
from huanhuan.dataset.convert import Result, convert
from huanhuan.dataset.filters import NAMES, FilterOptions
from huanhuan.dataset.options import Options
from huanhuan.dataset.output import PAGE, REPORT, TRAIN, VAL, check_out, is_one_file, write_together
from huanhuan.dataset.report import REASONS
from huanhuan.errors import Problems
from huanhuan.persona import load_persona


def run(sources: Sequence[Path], out: Path, **given: Any) -> str:
    """Convert ``sources`` and write ``out``; ``given`` are the tool's options by name.

    Returns: the summary to print.
    Raises: UserError for contradictory options and everything that :func:`convert` raises; then nothing is written.
    """
    options = read_options(out, given)
    check_out(out, (*sources, *([options.card] if options.card else [])))
    result = convert(sources, options)
    write_result(out, result, html=given.get("html") is not False)
    return summary(out, result)


def read_options(out: Path, given: dict[str, Any]) -> Options:
    """The tool's options checked against each other.

    Raises: UserError with every contradiction, one line each.
    """
    problems = Problems()
    persona_file, character = given.get("persona"), given.get("character")
    if persona_file and character:
        problems.add("--persona 与 --character 只能用一个 / give either --persona or --character, not both")
    if character is not None and not character.strip():
        problems.add("--character 是空的 / is empty: give the name as it stands in the script")
    if persona_file and given.get("aliases"):
        problems.add("--alias 只能与 --character 一起用 / --alias goes with --character: add it to aliases in the card")
    if persona_file and given.get("system") is not None:
        problems.add("--system 与角色卡矛盾 / --system contradicts --persona: change system in the card")
    filters_given = [
        name for name in ("min_chars", "copies", "similarity", "interjections") if given.get(name) is not None
    ]
    if given.get("keep_all"):
        problems_of = [f"--{name.replace('_', '-')}" for name in filters_given] + ["--no-filter"] * bool(
            given.get("off")
        )
        if problems_of:
            problems.add(f"--keep-all 与 {', '.join(problems_of)} 矛盾 / contradict each other: give one")
    if given.get("identity_share") and not persona_file:
        problems.add("--identity-share 需要 --persona / needs --persona, where the identity answers are")
    if given.get("val_share") and is_one_file(out):
        problems.add(f"--val-share 与 --out {out.name} 矛盾 / one file has no split: give a folder as --out")
    if given.get("aliases") and not persona_file and not character:
        problems.add("--alias 需要 --character / needs --character")
    if given.get("budget") is not None and given.get("budget_tokens") is not None:
        problems.add("--budget 与 --budget-tokens 只能用一个 / give one of the two")
    if given.get("budget_tokens") is not None and not given.get("tokenizer"):
        problems.add("--budget-tokens 需要 --tokenizer / needs --tokenizer FOLDER to count with")
    if given.get("html") and is_one_file(out):
        problems.add(f"--html 与 --out {out.name} 矛盾 / one file has no report: give a folder as --out")
    if given.get("context_chars") is not None and (given.get("context") or 1) < 2:
        problems.add("--context-chars 需要 --context 2 或更多 / needs --context of 2 or more")
    problems.raise_if_any()
    persona = load_persona(persona_file) if persona_file else None
    names = (
        persona.names
        if persona
        else ((character or "").strip(), *(alias.strip() for alias in given.get("aliases") or ()))
    )
    system = persona.system if persona else (given.get("system") or "").strip() or None
    return Options(
        names=tuple(dict.fromkeys(name for name in names if name)),
        system=system,
        persona=persona,
        card=persona_file,
        cut=CutOptions(**_only(CutOptions, given), names=(given.get("context") or 1) > 1),
        filters=FilterOptions(
            off=frozenset(NAMES if given.get("keep_all") else given.get("off") or ()),
            **_only(FilterOptions, {**given, "off": None}),
        ),
        **_only(Options, {key: value for key, value in given.items() if key not in ("persona", "system", "names")}),
    )


def _only(kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Those of ``given`` that ``kind`` has a field for and that were really given."""
    names = {each.name for each in fields(kind)} - {"names"}
    return {key: value for key, value in given.items() if key in names and value is not None}


def write_result(out: Path, result: Result, *, html: bool = True) -> None:
    """One ``.jsonl`` with every record, or train.jsonl, val.jsonl, report.json and report.html in a folder.

    Raises: OSError if the disk is full or the place may not be written; then every file is as it was.
    """
    if is_one_file(out):
        write_together(out.parent, {out.name: _lines(chain(result.train(), result.val()))})
        return
    contents: dict[str, Iterable[str]] = {
        TRAIN: _lines(result.train()),
        VAL: _lines(result.val()),
        REPORT: result.report.json_pieces(),
    }
    if html:
        # Loaded only here: drawing takes about 0.2 s, and records in one file need no report.
        from huanhuan.dataset.report_html import render_report

        contents[PAGE] = [render_report(result.report)]
    # A page of another conversion must not stand beside these records.
    write_together(out, contents, remove=() if html else (PAGE,))


def _lines(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line + "\n"


def summary(out: Path, result: Result) -> str:
    """What was found and written, in a few lines."""
    report = result.report
    rows = [
        f"{each.file}: {each.layout}, {each.encoding}, {each.speeches} 句 / speeches, {each.scenes} 场 / scenes"
        for each in report.files[:12]
    ]
    if len(report.files) > len(rows):
        rows.append(f"… {len(report.files) - len(rows)} 个文件 / more files")
    counts = report.counts
    rows.append(
        f"{report.character or '对话 / conversations'}: {counts.get('character_speeches', 0)} 句台词 / speeches, "
        f"{counts.get('pairs', 0)} 组对话 / exchanges found, {counts['exchanges']} 组写入 / written"
    )
    shown = (
        "no_prompt",
        "unknown_prompt",
        "unattributed",
        "not_speech",
        "short",
        "interjection",
        "duplicate",
        "near_duplicate",
        "unlabelled",
        "unbalanced",
    )
    rows.extend(
        f"  {report.skipped_counts[reason]}: {REASONS[reason]}" for reason in shown if report.skipped_counts.get(reason)
    )
    rows.extend(f"注意 / note: {warning}" for warning in report.warnings[:10])
    parts = ", ".join(f"{part.name} {part.records} 条 / records ({part.scenes} 场 / scenes)" for part in report.split)
    rows.append(f"{out}: {parts}" if not is_one_file(out) else f"{out}: {counts['records']} 条 / records")
    return "\n".join(rows)
