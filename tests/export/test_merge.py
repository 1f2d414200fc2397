"""The merged model is the base plus the adapter, whatever the adapter, the type and the files of the base."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from huanhuan.errors import UserError
from huanhuan.export import weights
from huanhuan.export.run import export

IDS = torch.tensor([[1, 300, 301, 17, 44, 260, 9, 320]])
ADAPTERS = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 4},
    "patterns": {"rank_pattern": {"wqkv": 2, "output": 16}, "alpha_pattern": {"w2": 40}},
    "dora": {"use_dora": True, "target_modules": ["wqkv", "w2", "output"]},
    "embedding": {"target_modules": ["tok_embeddings", "wo"]},
    # PEFT takes every module whose name ends so: five norms.
    "modules_to_save": {"target_modules": ["wqkv"], "modules_to_save": ["output", "norm"]},
    "some layers": {"target_modules": ["wqkv"], "layers_to_transform": [1]},
    "regex": {"target_modules": r".*\.(wo|w1)"},
}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's safetensors files."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as handle:
            found.update({name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118
    return found


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def reload(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in ADAPTERS),
        *((kind, dtype) for kind in ("plain", "dora") for dtype in (torch.bfloat16, torch.float16)),
    ],
    ids=str,
)
def test_merged_weights_and_logits_are_those_of_peft(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    base = make_base(dtype)
    trained = train(base, ADAPTERS[kind])
    adapted_logits = logits(trained.model)
    with trained.model.disable_adapter():
        base_logits = logits(trained.model)
    out = tmp_path / "merged"
    export(trained.recipe, out, checkpoint=str(trained.path), base=base, progress=False)

    # The fp32 sum of the same numbers, rounded once: what no merge in this type can beat.
    expected = copy.deepcopy(trained.model).merge_and_unload().state_dict()
    merged = stored(out)
    assert merged.keys() == expected.keys()
    # Products are summed in another order than PEFT's, which may tip a number over to its neighbour.
    one_step = 2 * torch.finfo(dtype).eps
    changed = 0
    base_tensors = stored(base)
    for name, tensor in merged.items():
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor.float(), expected[name], rtol=one_step, atol=1e-6)
        changed += not torch.equal(tensor, base_tensors[name])
    assert changed == len({name.split(".lora_")[0] for name in trained.model.state_dict() if ".lora_" in name}) + (
        6 if kind == "modules_to_save" else 0
    )
    difference = (logits(reload(out)) - adapted_logits).abs().max()
    assert difference < {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.006}[dtype]
    assert (adapted_logits - base_logits).abs().max() > 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_agrees_with_peft_merging_in_the_same_type(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path, dtype: torch.dtype
) -> None:
    base = make_base(dtype)
    trained = train(base, dtype=dtype)
    export(trained.recipe, tmp_path / "adapter", checkpoint=str(trained.path), adapter_only=True)
    export(trained.recipe, tmp_path / "merged", checkpoint=str(trained.path), base=base, progress=False)
    from peft import PeftModel  # pyright: ignore[reportPrivateImportUsage]

    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True, torch_dtype=dtype)
    adapted: Any = PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    expected = adapted.merge_and_unload().state_dict()
    for name, tensor in stored(tmp_path / "merged").items():
        # PEFT rounds the product, then the sum; ours rounds once.
        torch.testing.assert_close(tensor, expected[name], rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


def test_blocks_of_rows_give_what_the_whole_gives(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(torch.bfloat16)
    trained = train(base, {"use_dora": True})
    export(trained.recipe, tmp_path / "whole", checkpoint=str(trained.path), base=base, progress=False)
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 1000)
    export(trained.recipe, tmp_path / "blocks", checkpoint=str(trained.path), base=base, progress=False)
    whole, blocks = stored(tmp_path / "whole"), stored(tmp_path / "blocks")
    assert whole.keys() == blocks.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(blocks[name], tensor, rtol=2 * torch.finfo(torch.bfloat16).eps, atol=1e-6)


def test_keeps_the_shards_of_the_base(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path
) -> None:
    base = make_base()
    trained = train(base)
    export(trained.recipe, tmp_path / "merged", checkpoint=str(trained.path), base=base, progress=False)
    ours, theirs = (
        json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
        for folder in (tmp_path / "merged", base)
    )
    assert len(set(theirs["weight_map"].values())) > 1
    assert ours == theirs


def test_reads_bin_shards_and_cuts_anew(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path
) -> None:
    base = make_base(safe=False)
    assert not list(base.glob("*.safetensors"))
    trained = train(base)
    export(trained.recipe, tmp_path / "kept", checkpoint=str(trained.path), base=base, progress=False)
    export(
        trained.recipe, tmp_path / "one", checkpoint=str(trained.path), base=base, max_shard_size="2GB", progress=False
    )
    export(
        trained.recipe,
        tmp_path / "cut",
        checkpoint=str(trained.path),
        base=base,
        max_shard_size="150KB",
        progress=False,
    )
    kept, one, cut = (stored(tmp_path / name) for name in ("kept", "one", "cut"))
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == len(list(base.glob("*.bin")))
    assert [file.name for file in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]
    for file in (tmp_path / "cut").glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as handle:
            assert file.stat().st_size < 155_000 or len(list(handle.keys())) == 1
    assert all(torch.equal(kept[name], one[name]) and torch.equal(kept[name], cut[name]) for name in kept)
    assert torch.equal(logits(reload(tmp_path / "cut")), logits(reload(tmp_path / "kept")))


@pytest.mark.parametrize("kind", ["plain", "embedding", "modules_to_save"])
def test_unties_the_head_when_training_told_it_from_the_embedding(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    base = make_base(tied=True)
    assert "output.weight" not in stored(base)
    trained = train(base, ADAPTERS[kind])
    adapted = logits(trained.model)
    export(trained.recipe, tmp_path / "merged", checkpoint=str(trained.path), base=base, progress=False)
    assert json.loads((tmp_path / "merged/config.json").read_text("utf-8"))["tie_word_embeddings"] is False
    torch.testing.assert_close(logits(reload(tmp_path / "merged")), adapted, atol=1e-5, rtol=1e-5)


def test_a_tied_head_that_was_not_trained_stays_tied(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path
) -> None:
    base = make_base(tied=True)
    trained = train(base, {"target_modules": ["wqkv"]})
    adapted = logits(trained.model)
    export(trained.recipe, tmp_path / "merged", checkpoint=str(trained.path), base=base, progress=False)
    assert json.loads((tmp_path / "merged/config.json").read_text("utf-8"))["tie_word_embeddings"] is True
    assert "output.weight" not in stored(tmp_path / "merged")
    torch.testing.assert_close(logits(reload(tmp_path / "merged")), adapted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [{"bias": "all"}, {"lora_bias": True}], ids=str)
def test_biases_are_merged_as_they_were_trained(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path, lora: dict[str, Any]
) -> None:
    base = make_base(bias=True)
    trained = train(base, {"target_modules": ["wqkv", "wo"], **lora})
    export(trained.recipe, tmp_path / "merged", checkpoint=str(trained.path), base=base, progress=False)
    before, after = stored(base), stored(tmp_path / "merged")
    name = "model.layers.1.attention.wqkv.bias"
    assert name in before and not torch.equal(before[name], after[name])
    torch.testing.assert_close(logits(reload(tmp_path / "merged")), logits(trained.model), atol=1e-5, rtol=1e-5)


def test_a_bias_without_one_in_the_base_is_refused(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path
) -> None:
    base = make_base()
    trained = train(base, {"target_modules": ["wqkv"], "lora_bias": True})
    with pytest.raises(UserError, match=r"wqkv\.bias"):
        export(trained.recipe, tmp_path / "out", checkpoint=str(trained.path), base=base, progress=False)


def test_a_base_of_another_size_is_refused(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path
) -> None:
    from huanhuan.training.tiny_base import build_random_base

    trained = train(make_base())
    other = build_random_base(tmp_path / "other", ["春风吹过长长的宫墙。"], hidden=32, layers=1)
    with pytest.raises(UserError) as caught:
        export(trained.recipe, tmp_path / "out", checkpoint=str(trained.path), base=other, progress=False)
    assert len(caught.value.problems) == 2
    assert "not in the base" in caught.value.problems[0] and "layers.1" in caught.value.problems[0]
    assert "shape differs" in caught.value.problems[1]


def test_dtype_can_be_chosen(make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path) -> None:
    base = make_base()
    trained = train(base)
    export(trained.recipe, tmp_path / "merged", checkpoint=str(trained.path), base=base, dtype="bf16", progress=False)
    assert {tensor.dtype for tensor in stored(tmp_path / "merged").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged/config.json").read_text("utf-8"))["torch_dtype"] == "bfloat16"


def test_overflow_is_refused(make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path) -> None:
    base = make_base()
    trained = train(base, {"lora_alpha": 1_000_000_000})
    with pytest.raises(UserError, match="bf16"):
        export(trained.recipe, tmp_path / "out", checkpoint=str(trained.path), base=base, dtype="fp16", progress=False)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
