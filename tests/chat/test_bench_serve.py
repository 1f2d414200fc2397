"""The measurement of serving, over LMDeploy's double: what it compares is the same, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_pipeline import Pipeline  # type: ignore[import-not-found]

from huanhuan.chat.engine import Sampling
from huanhuan.chat.lmdeploy_engine import LMDeployEngine
from huanhuan.errors import UserError
from huanhuan.template import encode

SLOTS = 3


@pytest.fixture(scope="module")
def bench() -> Any:
    path = Path(__file__).parents[2] / "bench/serve.py"
    spec = importlib.util.spec_from_file_location("bench_serve", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def engine(bench: Any, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LMDeployEngine]:
    monkeypatch.setattr(LMDeployEngine, "_build", lambda self, config: Pipeline(self.folder, config, SLOTS))
    built = LMDeployEngine(tiny_base, backend="pytorch")
    # As many different characters as to go in no circles.
    built._pipeline.words = ["", *map(chr, range(0x4E00, 0x4E00 + 900))]
    built._pipeline.endless = True
    built._pipeline.delay = 0.001
    bench.endless(built)
    yield built
    built.close()


def ways(bench: Any, engine: LMDeployEngine, desk: Any) -> dict[str, Any]:
    return {
        "direct": lambda sampling: bench.directly(engine, sampling),
        "engine": lambda sampling: bench.through(lambda wanted: engine.reply(bench.ASKED, wanted), sampling),
        "page": lambda sampling: bench.through(lambda wanted: desk.ask("v", bench.ASKED, wanted), sampling),
    }


def test_every_way_asks_for_the_same_and_gets_as_many_tokens(bench: Any, engine: LMDeployEngine) -> None:
    desk = bench.page_path(engine)
    try:
        timings = bench.measure(ways(bench, engine, desk), tokens=40, repeats=2)
    finally:
        desk.close()
    assert {name: len(each) for name, each in timings.items()} == {"direct": 2, "engine": 2, "page": 2}
    assert all(0 < each.first < each.seconds and each.tokens == 40 for many in timings.values() for each in many)
    requests = engine._pipeline.requests
    assert len(requests) == 9, "three ways, one try each and two that count"
    settings = [vars(each["gen_config"]) for each in requests]
    for number, three in enumerate(zip(*[iter(settings)] * 3, strict=True)):
        assert three[0] == three[1] == three[2], "within a turn nothing differs but the way"
        assert (three[0]["random_seed"], three[0]["ignore_eos"], three[0]["stop_token_ids"]) == (number, True, None)
        assert three[0]["do_sample"] and three[0]["temperature"] == 1 and three[0]["max_new_tokens"] == 40
    assert all(each["input_ids"] == encode(engine.tokenizer, bench.ASKED) for each in requests)


def test_replies_that_cannot_be_compared_are_refused(bench: Any) -> None:
    short = bench.Timing(0.1, 39, 1.0)
    with pytest.raises(UserError, match="39 tokens instead of 40"):
        bench.measure({"short": lambda sampling: short}, tokens=40, repeats=1)


def test_the_ways_take_turns_with_the_same_seeds(bench: Any) -> None:
    asked: list[tuple[str, Sampling]] = []

    def way(name: str) -> Any:
        def ask(sampling: Sampling) -> Any:
            asked.append((name, sampling))
            return bench.Timing(0.1, 5, 1.0)

        return ask

    bench.measure({name: way(name) for name in "abc"}, tokens=5, repeats=3)
    turns = [tuple(name for name, _ in asked[start : start + 3]) for start in range(0, 12, 3)]
    assert len(set(turns)) > 1 and all(sorted(turn) == list("abc") for turn in turns)
    assert [sampling.seed for _, sampling in asked] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_a_stop_of_all_slots_is_measured(bench: Any, engine: LMDeployEngine) -> None:
    desk = bench.page_path(engine)
    try:
        free, again = bench.stop_all(desk, engine, 800)
        assert 0 < free < 5 and 0 < again < 5 and len(engine._pipeline.stopped) == SLOTS + 1
        engine._pipeline.endless, engine._pipeline.words = False, [""]
        with pytest.raises(UserError, match="ended early"):
            bench.stop_all(desk, engine, 800)
    finally:
        desk.close()


def test_means_and_medians_are_told_beside_the_first_way(bench: Any) -> None:
    short = {
        "direct": [*[bench.Timing(0.05, 8, 0.1), bench.Timing(0.07, 8, 0.1)] * 4, bench.Timing(9.0, 8, 9.0)],
        "page": [bench.Timing(0.063, 8, 0.1)],
    }
    short["direct"].append(bench.Timing(0.001, 8, 0.1))  # one at either end does not count
    long = {
        "direct": [bench.Timing(1.0, 100, 0.5), bench.Timing(1.0, 100, 0.4), bench.Timing(9.0, 100, 9.0)],
        "page": [bench.Timing(1.0, 80, 0.5)],
    }
    assert bench.table(short, long).splitlines()[2:] == [
        "| direct | 60.0 | 200.0 |",
        "| page | 63.0 (+5.0%) | 160.0 (-20.0%) |",
    ]
    assert bench.changes(short, long)["page"] == (0.05, -0.2)


def test_a_model_that_goes_in_circles_is_measured_all_the_same(bench: Any, engine: LMDeployEngine) -> None:
    """Kept from ending its reply, even a good model may; the guard has all its work and no say."""
    engine._pipeline.words = ["好的，"]
    desk = bench.page_path(engine)
    try:
        timings = bench.measure(ways(bench, engine, desk), tokens=60, repeats=1)
        assert [each.tokens for many in timings.values() for each in many] == [60, 60, 60]
        assert len(engine._pipeline.requests) == 6, "nothing was said twice"
    finally:
        desk.close()


def test_the_verdict_is_a_line_or_an_error(bench: Any) -> None:
    direct = [bench.Timing(0.1, 100, 1.0)]
    good = {"direct": direct, "page": [bench.Timing(0.09, 100, 0.9)]}
    assert bench.verdict(good, good, 0.05).startswith("within 5%: ")
    late, slow = (
        {"direct": direct, "page": [page]} for page in (bench.Timing(0.106, 100, 1.0), bench.Timing(0.1, 100, 1.06))
    )
    for short, long in ((late, good), (good, slow)):
        with pytest.raises(UserError, match="not within 5%: first token at most"):
            bench.verdict(short, long, 0.05)


def test_the_whole_command_over_the_double(
    bench: Any,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As it is started on a GPU; its double is faster than any thread that looks at it, so only the shape is judged."""

    def build(self: LMDeployEngine, config: Any) -> Pipeline:
        made = Pipeline(self.folder, config, SLOTS)
        made.words, made.endless = [*map(chr, range(0x4E00, 0x4E00 + 900))], True
        return made

    monkeypatch.setattr(LMDeployEngine, "_build", build)
    monkeypatch.setenv("HUANHUAN_LMDEPLOY_BACKEND", "pytorch")
    arguments = [
        str(tiny_base),
        "--tokens",
        "30",
        "--repeats",
        "2",
        "--firsts",
        "3",
        "--out",
        str(tmp_path),
        "--tolerance",
    ]
    bench.main([*arguments, "9"], standalone_mode=False)
    told = capsys.readouterr().out
    assert told.startswith("LMDeploy PyTorch, 3 slots") and "| page's engine, guard and desk |" in told
    assert "stop: 3 replies, all slots free after" in told and told.splitlines()[-1].startswith("within 900%: ")
    kept = json.loads((tmp_path / "serve.json").read_text())
    assert [len(each) for each in [*kept["short"].values(), *kept["long"].values()]] == [3, 3, 3, 2, 2, 2]
    with pytest.raises(SystemExit) as caught:
        bench.main([*arguments, "-9"], standalone_mode=False)
    assert caught.value.code == 1 and "error: not within -900%" in capsys.readouterr().err
