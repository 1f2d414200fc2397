"""Which files are read, in which order, under which names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from docx import Document

from huanhuan.errors import UserError
from huanhuan.text.numerals import chinese_number, natural_key
from huanhuan.text.sources import SourceFile, find_files, read_text


def test_natural_order_with_both_kinds_of_numbers(tmp_path: Path) -> None:
    names = ["第一集", "第二集", "第3集", "第九集", "第10集", "第十一集", "第二十集", "第一百零二集"]
    for name in reversed(names):
        (tmp_path / f"{name}.txt").write_text("甲：一。", "utf-8")
    assert [file.path.stem for file in find_files([tmp_path])] == names


def test_folders_are_walked_and_hidden_and_foreign_files_left(tmp_path: Path) -> None:
    root = tmp_path / "剧本"
    for name in [
        "第2卷/a.txt",
        "第10卷/a.md",
        "a.docx",
        "b.FOUNTAIN",
        ".git/x.txt",
        "~$a.docx",
        "train.jsonl",
        "图.png",
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("甲：一。", "utf-8")
    found = [file.name for file in find_files([root])]
    assert sorted(found) == sorted(["剧本/第2卷/a.txt", "剧本/第10卷/a.md", "剧本/a.docx", "剧本/b.FOUNTAIN"])
    assert found.index("剧本/第2卷/a.txt") < found.index("剧本/第10卷/a.md")


def test_names_do_not_depend_on_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.txt").write_text("甲：一。", "utf-8")
    monkeypatch.chdir(tmp_path / "s")
    here = find_files([".", "a.txt"])
    assert [file.name for file in here] == ["s/a.txt"]
    assert [file.name for file in find_files([tmp_path / "s" / "a.txt"])] == ["a.txt"]


def test_every_missing_source_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find_files([tmp_path / "x.txt", tmp_path / "empty", tmp_path / "y.txt"])
    assert [Path(line.split(": ")[0]).name for line in error.value.problems] == ["x.txt", "empty", "y.txt"]


def test_docx_paragraphs_and_tables_in_order(tmp_path: Path) -> None:
    document = Document()
    document.add_paragraph("第1场")
    table = document.add_table(rows=2, cols=2)
    for row, (name, text) in zip(table.rows, [("皇帝", "平身。"), ("甄嬛", "谢皇上。")], strict=True):
        row.cells[0].text, row.cells[1].text = name, text
    document.add_paragraph("皇帝：坐。")
    document.save(str(tmp_path / "a.docx"))
    text, encoding = read_text(SourceFile(tmp_path / "a.docx", "a.docx"))
    assert encoding == "docx"
    assert text.split("\n") == ["第1场", "皇帝\t平身。", "甄嬛\t谢皇上。", "皇帝：坐。"]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04broken", "甲：一。".encode()])
def test_a_broken_docx_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.docx").write_bytes(data)
    with pytest.raises(UserError, match=r"^a\.docx: .*\.docx"):
        read_text(SourceFile(tmp_path / "a.docx", "a.docx"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("甲：一。", "utf-8")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(UserError, match=r"^a\.txt: "):
        read_text(SourceFile(tmp_path / "a.txt", "a.txt"))


NUMBERS = "十=10 十二=12 二十=20 一百零二=102 二〇二六=2026 廿三=23 三千六百五十=3650 一万二千=12000 两百=200 一亿零五=100000005"


@pytest.mark.parametrize("pair", NUMBERS.split())
def test_chinese_numbers(pair: str) -> None:
    text, value = pair.split("=")
    assert chinese_number(text) == int(value)


def test_any_name_has_a_key() -> None:
    names = ["", "1" * 5000, "²", "一" * 500, "a", "第集"]
    assert sorted(names, key=natural_key)
