"""Attention inside a pack: each kernel against dialogues attended to one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from huanhuan.training.attention import attend, choose_kernel, document_ids, locate_documents

CPU = torch.device("cpu")


def starts_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def one_by_one(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention of each dialogue alone, query heads in groups that share a key head."""
    outputs, at = [], 0
    groups = query.shape[1] // key.shape[1]
    for length in lengths:
        part = slice(at, at + length)
        q, k, v = (each[part].transpose(0, 1) for each in (query, key, value))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1))
        at += length
    return torch.cat(outputs)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 2**16))
def test_sdpa_sees_one_dialogue_at_a_time(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(sum(lengths), heads, 8, generator=generator) for heads in (4, 2, 2))
    documents = locate_documents(starts_of(lengths), sum(lengths), max(lengths), "sdpa")
    torch.testing.assert_close(attend(query, key, value, documents), one_by_one(query, key, value, lengths))


def test_flex_equals_sdpa_gradients_included() -> None:
    lengths = [50, 1, 77]
    torch.manual_seed(0)
    tensors = [torch.randn(128, heads, 16, requires_grad=True) for heads in (4, 2, 2)]
    upstream = torch.randn(128, 4, 16)
    results = []
    for kernel in ("sdpa", "flex"):
        documents = locate_documents(starts_of(lengths), 128, 77, kernel)
        output = attend(*tensors, documents)  # pyright: ignore[reportCallIssue]
        results.append([output, *torch.autograd.grad(output, tensors, upstream)])
    for flex, sdpa in zip(*results, strict=True):
        torch.testing.assert_close(flex, sdpa, rtol=1e-4, atol=1e-5)


def test_documents_that_are_empty_are_nobodys() -> None:
    assert document_ids(torch.tensor([0, 2, 2, 5], dtype=torch.int32), 5).tolist() == [0, 0, 2, 2, 2]


@pytest.mark.parametrize("kernel", ["sdpa", "flex", "varlen"])
def test_a_named_kernel_is_taken(kernel: Any) -> None:
    assert choose_kernel(kernel, CPU, torch.float32) == kernel


def test_a_cpu_gets_sdpa_whatever_else_is_compiled() -> None:
    assert choose_kernel("auto", CPU, torch.bfloat16, compiled=True) == "sdpa"


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="flash3"):
        choose_kernel("flash3", CPU, torch.bfloat16)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("longest", "bound"), [(1, 128), (128, 128), (129, 256), (400, 512), (2048, 2048)])
def test_compiled_layers_see_few_different_bounds(longest: int, bound: int) -> None:
    documents = locate_documents(starts_of([longest]), longest, longest, "varlen", compiled=True)
    assert documents.longest == bound
