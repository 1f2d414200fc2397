"""How fast and how exact scripts become records: `make bench-text`.

    python bench/text.py            # 2 MB, then 20 MB
    python bench/text.py --large    # up to 200 MB, about a minute more

Each figure is of a whole process, start of the interpreter included, with the processor time beside the clock: the
clock is the best of three runs, since other work on the machine can only add to it. Exits 1 if 2 MB take more than a
second of processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TOOL = str(ROOT / "tools" / "dialogue_to_jsonl.py")
HERO = "阿沅"
OTHERS = ("皇帝", "绮妃", "秋砚", "太后", "卞总管", "小墩子", "陆晚照", "慎嫔", "裴太医", "老葛")
LIMIT = 1.0
_HAN = "的一是了我不在有他这上们来到时大地为子中你说生国年着就那和要她出也得里后自以会家可下而过天去能对小多然于心学么之都好看起"

# What people use today: two lines and a prompt that is the line before.
REGEX = """
import json, re, sys
lines = re.findall(r"(.+?)：(.+)", open(sys.argv[1], encoding="utf-8").read())
pairs = [{"input": a[1], "output": b[1]} for a, b in zip(lines, lines[1:]) if b[0] == sys.argv[2]]
with open(sys.argv[3], "w", encoding="utf-8") as out:
    out.writelines(json.dumps({"conversation": [pair]}, ensure_ascii=False) + "\\n" for pair in pairs)
"""


class Cost(NamedTuple):
    """Seconds by the clock and of the processor, and the largest memory in MB, of one process."""

    wall: float
    cpu: float
    memory: float


def write_script(path: Path, size: int, seed: int) -> set[tuple[str, str]]:
    """Write about ``size`` bytes of a script with the quirks of real ones; returns the exchanges that are right."""
    rng = random.Random(seed)
    right: set[tuple[str, str]] = set()
    written = scene = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while written < size:
            scene += 1
            lines = [f"第{scene}集"] if scene % 17 == 1 else []
            lines += [f"第{scene % 40 + 1}幕", "（夜，殿内，众人散去）"]
            cast = [*([HERO] if rng.random() < 0.45 else []), *rng.sample(OTHERS, 3)]
            turns: list[tuple[str, str]] = []
            for _ in range(rng.randint(4, 25)):
                name = rng.choice(cast)
                text = "".join(rng.choices(_HAN, k=rng.choice((4, 8, 12, 20, 30, 50)))) + rng.choice("。！？…")
                if rng.random() < 0.004:
                    text = f"只一句：{text}"
                inline = rng.choice(("（笑）", "（转身离去）")) if rng.random() < 0.05 else ""
                beat = "（喜）" if rng.random() < 0.04 else ""
                lines.append(f"{name}{beat}{'；' if rng.random() < 0.005 else '：'}{inline}{text}")
                if turns and turns[-1][0] == name:
                    turns[-1] = (name, turns[-1][1] + text)
                else:
                    turns.append((name, text))
            right.update((a[1], b[1]) for a, b in pairwise(turns) if b[0] == HERO)
            block = "\n".join(lines) + "\n"
            written += len(block.encode("utf-8"))
            file.write(block)
    return right


def measure(command: list[str], repeat: int = 1) -> Cost:
    """The cost of a process, the best of ``repeat`` runs.

    Raises: RuntimeError if the process fails.
    """
    best: Cost | None = None
    for _ in range(repeat):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
        cost = Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
        best = min(best, cost) if best else cost
    assert best is not None
    return best


def exchanges(path: Path) -> list[tuple[str, str]]:
    """Every exchange of a file of records."""
    with path.open(encoding="utf-8") as file:
        return [(row["input"], row["output"]) for line in file for row in json.loads(line)["conversation"]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed and exactness of the converter.")
    parser.add_argument("--large", action="store_true", help="go up to 200 MB")
    large = parser.parse_args().large
    print(f"{'':34}{'wall s':>8}{'cpu s':>8}{'MB':>7}   exchanges")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        right = write_script(folder / "2.txt", 2_000_000, 0)
        out = folder / "out.jsonl"
        tool = [sys.executable, TOOL, str(folder / "2.txt"), "--character", HERO, "--out"]
        (folder / "regex.py").write_text(REGEX, "utf-8")
        rows = {
            "two-line regex": [sys.executable, str(folder / "regex.py"), str(folder / "2.txt"), HERO, str(out)],
            "records in one file": [*tool, str(out), "--keep-all"],
            "the same, filtered": [*tool, str(out)],
            "folder with report.json": [*tool, str(folder / "out"), "--no-html"],
            "folder with report.html too": [*tool, str(folder / "out")],
        }
        slow = False
        for label, command in rows.items():
            cost = measure(command, 3)
            found = "" if "folder" in label else _verdict(exchanges(out), right)
            print(f"2 MB, {label:28}{cost.wall:8.2f}{cost.cpu:8.2f}{cost.memory:7.0f}   {found}", flush=True)
            slow = slow or (cost.cpu > LIMIT and label != "two-line regex")
        for megabytes in (20, 200) if large else (20,):
            many = folder / f"{megabytes}"
            many.mkdir()
            for number in range(megabytes // 2):
                write_script(many / f"第{number + 1}集.txt", 2_000_000, number)
            for label, source in (("in files of 2 MB", many), ("in one file", folder / f"{megabytes}.txt")):
                if not source.exists():
                    with source.open("wb") as file:
                        file.writelines(each.read_bytes() for each in sorted(many.iterdir()))
                cost = measure([sys.executable, TOOL, str(source), "--character", HERO, "--out", str(out)])
                print(f"{megabytes} MB, {label:27}{cost.wall:8.2f}{cost.cpu:8.2f}{cost.memory:7.0f}", flush=True)
    if slow:
        print(f"2 MB took more than {LIMIT} s of processor time", file=sys.stderr)
    return int(slow)


def _verdict(found: list[tuple[str, str]], right: set[tuple[str, str]]) -> str:
    good = len(set(found) & right)
    return f"{good} of {len(right)} right, {len(found) - good} wrong"


if __name__ == "__main__":
    sys.exit(main())
