"""Small updates of bfloat16 weights are not lost, and the fused step is AdamW with bitsandbytes' states."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bitsandbytes.functional import create_dynamic_map
from bitsandbytes.optim import AdamW8bit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from huanhuan.training import optimizer
from huanhuan.training.optimizer import BLOCK, CompensatedAdamW8bit, _fused_step, dynamic_code

STEPS = 60


def train(
    kind: Any, dtype: torch.dtype, shape: tuple[int, ...] = (64, 128), decades: float = 0.0, decay: float = 0.0
) -> tuple[Tensor, Tensor, Any]:
    """Weights before and after steps of 2e-5 along gradients that are the same for every kind.

    The gradients of a row differ in size by ``decades``.
    """
    torch.manual_seed(0)
    before = (torch.randn(shape) * 0.02).bfloat16()
    weight = nn.Parameter(before.to(dtype))
    optimiser = kind([weight], lr=2e-5, weight_decay=decay)
    sizes = torch.logspace(-decades, 0, shape[-1])
    for step in range(STEPS):
        torch.manual_seed(step)
        weight.grad = ((torch.randn(shape) + 0.5) * sizes).bfloat16().to(dtype)
        optimiser.step()
    return before.float(), weight.detach(), optimiser


def sum_of(weight: Tensor, optimiser: Any) -> Tensor:
    """Weight and remainder together."""
    (state,) = optimiser.state.values()
    assert weight.dtype == state["remainder"].dtype == torch.bfloat16
    return weight.float() + state["remainder"].float()


def off(got: Tensor, exact: Tensor, before: Tensor) -> float:
    """Distance from where AdamW in float32 ends, as a share of the way there."""
    return float((got - exact).norm() / (exact - before).norm())


@pytest.mark.parametrize("decades", [0.0, 2.0, 4.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_as_near_to_adamw_as_bitsandbytes_is_in_float32(decades: float, decay: float) -> None:
    options: dict[str, Any] = {"decades": decades, "decay": decay}
    before, exact, _ = train(torch.optim.AdamW, torch.float32, **options)
    _, wide, _ = train(AdamW8bit, torch.float32, **options)
    _, weight, optimiser = train(CompensatedAdamW8bit, torch.bfloat16, **options)
    assert off(sum_of(weight, optimiser), exact, before) <= off(wide, exact, before) * 1.05
    # The weight alone is as near to the sum as bfloat16 can be: half a step of eight bits.
    torch.testing.assert_close(weight.float(), sum_of(weight, optimiser), rtol=2**-8, atol=0)


@pytest.mark.parametrize("shape", [(3, 100), (5, 1000)], ids=["float32 states", "a block not full"])
def test_few_weights_and_odd_numbers_of_them_take_the_other_way(shape: tuple[int, int]) -> None:
    before, exact, _ = train(torch.optim.AdamW, torch.float32, shape)
    _, weight, optimiser = train(CompensatedAdamW8bit, torch.bfloat16, shape)
    assert off(sum_of(weight, optimiser), exact, before) < 0.02


def test_without_it_most_of_the_way_is_lost() -> None:
    before, wide, _ = train(AdamW8bit, torch.float32)
    _, rounded, _ = train(AdamW8bit, torch.bfloat16)
    assert off(rounded.float(), wide, before) > 0.3


@pytest.mark.parametrize("shape", [(64, 128), (5, 1000), (3, 100)])
def test_float32_weights_have_no_remainder(shape: tuple[int, int]) -> None:
    before, exact, _ = train(torch.optim.AdamW, torch.float32, shape)
    _, own, optimiser = train(CompensatedAdamW8bit, torch.float32, shape)
    assert off(own, exact, before) < 0.02
    assert all("remainder" not in state for state in optimiser.state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_weights_are_updated_part_by_part(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole, once = train(CompensatedAdamW8bit, dtype, (5, 1000))
    monkeypatch.setattr(optimizer, "PART_ON_CPU", 3 * BLOCK)
    _, parted, by_parts = train(CompensatedAdamW8bit, dtype, (5, 1000))
    assert torch.equal(whole, parted)
    (first,), (second,) = once.state.values(), by_parts.state.values()
    for name in ("state1", "state2", "absmax1", "absmax2"):
        assert torch.equal(first[name], second[name])


def states(seed: int, blocks: int = 3) -> dict[str, Tensor]:
    """Arguments of the fused step after some steps, one block untouched."""
    generator = torch.Generator().manual_seed(seed)
    absmax = torch.rand(blocks, generator=generator)
    absmax[0] = 0
    maps = {"map1": create_dynamic_map(signed=True), "map2": create_dynamic_map(signed=False)}
    return {
        "weights": torch.randn(blocks, BLOCK, generator=generator).bfloat16(),
        "remainder": torch.randn(blocks, BLOCK, generator=generator).bfloat16() * 1e-3,
        "gradient": torch.randn(blocks, BLOCK, generator=generator).bfloat16(),
        "codes1": torch.randint(0, 256, (blocks, BLOCK), generator=generator, dtype=torch.uint8),
        "codes2": torch.randint(1, 256, (blocks, BLOCK), generator=generator, dtype=torch.uint8),
        "absmax1": absmax.clone(),
        "absmax2": absmax.clone(),
        **maps,
    }


NUMBERS: dict[str, Any] = {
    "rate": torch.tensor(1e-3),
    "eps": torch.tensor(1e-8),
    "decay": torch.tensor(0.99),
    "beta1": 0.9,
    "beta2": 0.999,
}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31))
def test_one_step_is_adamw_and_every_code_the_nearest(seed: int) -> None:
    given_states = states(seed)
    wide = {name: value.double() for name, value in given_states.items()}
    first = 0.9 * given_states["map1"].double()[given_states["codes1"].int()] * wide["absmax1"][:, None]
    second = 0.999 * given_states["map2"].double()[given_states["codes2"].int()] * wide["absmax2"][:, None]
    first, second = first + 0.1 * wide["gradient"], second + 0.001 * wide["gradient"] ** 2
    want = (wide["weights"] + wide["remainder"] - 1e-3 * first / (second.sqrt() + 1e-8)) * 0.99
    _fused_step(**given_states, **NUMBERS)
    together = given_states["weights"].double() + given_states["remainder"].double()
    # Two numbers of eight bits of mantissa each.
    torch.testing.assert_close(together, want, rtol=2**-16, atol=1e-9)
    for moments, number, least in ((first, "1", 0), (second, "2", 1)):
        absmax, values = given_states[f"absmax{number}"].double(), given_states[f"map{number}"].double()
        torch.testing.assert_close(absmax, moments.abs().amax(1), rtol=1e-6, atol=0)
        scaled = moments / absmax[:, None]
        distance = (scaled - values[given_states[f"codes{number}"].int()]).abs()
        nearest = (scaled[..., None] - values[least:]).abs().amin(-1)
        torch.testing.assert_close(distance, nearest, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_the_nearest_value_of_bitsandbytes_map(signed: bool) -> None:
    values = create_dynamic_map(signed=signed)
    assert torch.equal(dynamic_code(values, signed=signed), torch.arange(256.0))
    generator = torch.Generator().manual_seed(0)
    sizes = torch.cat([torch.rand(50_000, generator=generator), 10 ** (-9 * torch.rand(100_000, generator=generator))])
    given_values = sizes * (torch.randint(0, 2, sizes.shape, generator=generator) * 2 - 1 if signed else 1)
    wanted = torch.bucketize(given_values, (values[1:] + values[:-1]) / 2)
    codes = dynamic_code(given_values, signed=signed).long()
    # Midway between two values either may be meant.
    farther = (values[codes] - given_values).abs() - (values[wanted] - given_values).abs()
    assert float((farther / sizes).max()) < 1e-6 and int((codes != wanted).sum()) < 20


def test_no_second_moment_becomes_zero() -> None:
    """Else a gradient a thousand times smaller than its neighbours' would move its weight a thousand times too far."""
    given_states = states(0)
    given_states["gradient"][:, 1:] *= 1e-5
    given_states["codes2"][:] = 1
    _fused_step(**given_states, **NUMBERS)
    assert int(given_states["codes2"].min()) == 1


def test_a_block_without_gradients_stays() -> None:
    given_states = states(0)
    for name in ("gradient", "absmax1", "absmax2"):
        given_states[name].zero_()
    before = given_states["weights"].clone(), given_states["remainder"].clone()
    _fused_step(**given_states, **{**NUMBERS, "decay": torch.tensor(1.0)})
    together = given_states["weights"].float() + given_states["remainder"].float()
    torch.testing.assert_close(together, before[0].float() + before[1].float(), rtol=2**-16, atol=1e-9)
    assert not any(given_states[name].any() for name in ("absmax1", "absmax2"))


def test_one_kernel_serves_every_shape_and_learning_rate() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(_fused_step, backend=counter, dynamic=True)
    for blocks in (3, 7, 40):
        given_states, same = states(blocks, blocks), states(blocks, blocks)
        numbers = {**NUMBERS, "rate": torch.tensor(1e-3 / blocks)}
        step(**given_states, **numbers)
        _fused_step(**same, **numbers)
        for name in same:
            torch.testing.assert_close(given_states[name], same[name])
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """No step that another test compiled, and none left for the next."""
    caches = optimizer._compiled, optimizer._compiled_for_cpu
    for each in caches:
        each.cache_clear()
    torch._dynamo.reset()
    yield
    for each in caches:
        each.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def compiler(nothing_compiled: None) -> None:
    """A C++ compiler that has compiled nothing yet."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler")


@pytest.mark.usefixtures("compiler")
def test_a_real_compiler_keeps_what_rounding_leaves_out() -> None:
    """torch.compile drops a cast to bfloat16 and back, and with it every remainder."""
    given_states, same = states(0), states(0)
    torch.compile(_fused_step, dynamic=True)(**given_states, **NUMBERS)
    _fused_step(**same, **NUMBERS)
    assert float(given_states["remainder"].abs().max()) > 1e-4
    for name in same:
        torch.testing.assert_close(given_states[name], same[name], rtol=2**-8, atol=1e-8)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_weights_on_a_cpu_take_the_compiled_step(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    _, small, _ = train(CompensatedAdamW8bit, dtype, (5, 1000))
    monkeypatch.setattr(optimizer, "LARGE", 0)
    _, large, _ = train(CompensatedAdamW8bit, dtype, (5, 1000))
    assert optimizer._step_for(large) is optimizer._compiled()
    torch.testing.assert_close(large, small, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-7)


@pytest.mark.usefixtures("nothing_compiled")
def test_the_step_for_a_cpu_is_compiled_for_as_many_blocks_as_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a few blocks the compiler makes a kernel of one thread, whatever it gets later."""
    seen: list[Tensor] = []
    monkeypatch.setattr(optimizer, "_compiled", lambda: lambda **values: seen.append(values["weights"]))
    optimizer._compiled_for_cpu()
    assert [each.numel() for each in seen] == [optimizer.PART_ON_CPU]


@pytest.mark.usefixtures("nothing_compiled")
def test_a_machine_that_cannot_compile_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise RuntimeError("no g++\nanywhere")

    told: list[str] = []
    monkeypatch.setattr(optimizer, "print_log", lambda message, *_: told.append(message))
    monkeypatch.setattr(optimizer, "LARGE", 0)
    monkeypatch.setattr(optimizer, "_compiled", lambda: fails)
    before, exact, _ = train(torch.optim.AdamW, torch.float32)
    _, own, _ = train(CompensatedAdamW8bit, torch.float32)
    assert off(own, exact, before) < 0.02
    (message,) = told
    assert "install g++" in message and message.endswith("(no g++ anywhere)")


@pytest.mark.parametrize(
    ("given_threads", "processes", "used"), [(1, "1", 8), (1, "4", 2), (3, "4", 3), (1, "16", 1), (1, "", 1)]
)
def test_a_process_of_torchrun_takes_its_share_of_the_cores(
    given_threads: int, processes: str, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    before = torch.get_num_threads()
    torch.set_num_threads(given_threads)
    try:
        with optimizer._every_core():
            assert torch.get_num_threads() == used
        assert torch.get_num_threads() == given_threads
    finally:
        torch.set_num_threads(before)


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_rounding_by_bits_is_the_cast_s(values: list[float]) -> None:
    wide = torch.tensor(values, dtype=torch.float32)
    got, want = optimizer._rounded(wide, torch.bfloat16), wide.bfloat16().float()
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(optimizer._rounded(wide, torch.float16).isnan(), wide.isnan())


def test_the_remainder_is_saved_and_restored() -> None:
    _, weight, optimiser = train(CompensatedAdamW8bit, torch.bfloat16)
    saved = optimiser.state_dict()
    copy = nn.Parameter(weight.clone())
    restored = CompensatedAdamW8bit([copy], lr=2e-5, weight_decay=0)
    restored.load_state_dict(saved)
    for parameter, each in ((weight, optimiser), (copy, restored)):
        each.param_groups[0]["params"][0].grad = torch.ones(64, 128).bfloat16()
        each.step()
        assert parameter.dtype == torch.bfloat16
    assert torch.equal(optimiser.param_groups[0]["params"][0], copy)
