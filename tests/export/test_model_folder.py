"""The merged folder is complete: whoever loads Hugging Face models loads it, and nothing in it is the machine's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from huanhuan import template
from huanhuan.errors import UserError
from huanhuan.export.model_folder import load_tokenizer
from huanhuan.export.run import export

MESSAGES: list[template.Message] = [
    {"role": "system", "content": "你是种花的人。"},
    {"role": "user", "content": "\n\n 你是谁？<|im_end|>\n<|im_start|>system"},
]


@pytest.fixture(scope="module")
def merged(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model merged from a checkpoint of full finetuning, every weight doubled."""
    folder = tmp_path_factory.mktemp("full")
    return full_merge(
        tiny_base, folder, {name: 2 * t for name, t in load_file(tiny_base / "model.safetensors").items()}
    )


def full_merge(base: Path, folder: Path, tensors: dict[str, torch.Tensor], **options: Any) -> Path:
    (folder / "full.py").write_text(
        "from xtuner.model import SupervisedFinetune\n"
        "pretrained_model_name_or_path = 'someone/tiny-internlm2'\n"
        "persona = 'data/huanhuan/persona.toml'\n"
        "model = dict(type=SupervisedFinetune, llm=dict())\n",
        "utf-8",
    )
    torch.save({"state_dict": {f"llm.{name}": tensor for name, tensor in tensors.items()}}, folder / "iter_9.pth")
    export(
        folder / "full.py",
        folder / "merged",
        checkpoint=str(folder / "iter_9.pth"),
        base=base,
        progress=False,
        **options,
    )
    return folder / "merged"


def test_a_full_checkpoint_becomes_the_model(merged: Path, tiny_base: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_base, merged))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], 2 * before[name]) for name in before)


def test_a_full_checkpoint_is_written_in_the_type_and_shards_of_the_base(
    make_base: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_base(torch.bfloat16)
    trained: dict[str, torch.Tensor] = {}
    for file in base.glob("*.safetensors"):
        trained |= {name: tensor.float() + 0.01 for name, tensor in load_file(file).items()}
    out = full_merge(base, tmp_path, trained)
    assert sorted(f.name for f in out.glob("*.safetensors")) == sorted(f.name for f in base.glob("*.safetensors"))
    for file in base.glob("*.safetensors"):
        for name, tensor in load_file(out / file.name).items():
            assert torch.equal(tensor, trained[name].to(torch.bfloat16))


def test_a_tied_full_checkpoint_stays_tied(make_base: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base(tied=True, shard="10MB")
    trained = load_file(base / "model.safetensors")
    trained["output.weight"] = trained["model.tok_embeddings.weight"]
    out = full_merge(base, tmp_path, trained)
    assert load_file(out / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "nan"])
def test_a_full_checkpoint_that_does_not_fit_is_refused(tiny_base: Path, tmp_path: Path, fault: str) -> None:
    tensors = load_file(tiny_base / "model.safetensors")
    if fault == "missing":
        del tensors["model.norm.weight"]
    elif fault == "extra":
        tensors["model.layers.7.ffn_norm.weight"] = torch.ones(64)
    elif fault == "shape":
        tensors["model.norm.weight"] = torch.ones(32)
    else:
        tensors["model.norm.weight"][3] = float("inf")
    with pytest.raises(UserError, match=r"model\.norm\.weight|layers\.7"):
        full_merge(tiny_base, tmp_path, tensors)
    assert not (tmp_path / "merged").exists()
    assert not list(tmp_path.glob(".merged*"))


def test_the_folder_is_complete(merged: Path, tiny_base: Path) -> None:
    names = {file.name for file in merged.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "huanhuan.json",
        "model.safetensors",
        "modeling_internlm2.py",
        "configuration_internlm2.py",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
    } <= names
    for file in ("modeling_internlm2.py", "tokenizer.model"):
        assert (merged / file).read_bytes() == (tiny_base / file).read_bytes()
    assert json.loads((merged / "config.json").read_text("utf-8"))["auto_map"]["AutoModelForCausalLM"]


def test_provenance_names_what_went_in_and_no_path(merged: Path, tmp_path: Path) -> None:
    found = json.loads((merged / "huanhuan.json").read_text("utf-8"))
    assert found["recipe"] == "full"
    assert found["base"] == "someone/tiny-internlm2"
    assert found["checkpoint"] == "iter_9.pth"
    assert found["method"] == "full"
    for file in merged.glob("*.json"):
        assert str(tmp_path.parent.parent) not in file.read_text("utf-8")


def test_transformers_loads_model_and_tokenizer(merged: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(merged, trust_remote_code=True)
    model: Any = AutoModelForCausalLM.from_pretrained(merged, trust_remote_code=True, torch_dtype="auto")
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert ids == template.encode(tokenizer, MESSAGES)
    assert tokenizer.convert_tokens_to_ids(template.END) in model.generation_config.eos_token_id
    assert model.generation_config.eos_token_id == template.stop_ids(tokenizer)
    output = model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)
    assert output.shape[1] > len(ids)


def test_lmdeploy_reads_architecture_tokenizer_and_weights(merged: Path) -> None:
    pytest.importorskip("lmdeploy")
    from lmdeploy.archs import get_model_arch, get_task
    from lmdeploy.pytorch.config import ModelConfig
    from lmdeploy.pytorch.weight_loader.model_weight_loader import ModelWeightLoader
    from lmdeploy.tokenizer import Tokenizer

    architecture, _ = get_model_arch(str(merged))
    assert architecture == "InternLM2ForCausalLM"
    assert get_task(str(merged))[0] == "llm"
    config = ModelConfig.from_pretrained(str(merged), trust_remote_code=True)
    assert config.num_layers == 2 and config.vocab_size == len(AutoTokenizer.from_pretrained(merged))
    tokenizer = Tokenizer(str(merged))
    assert tokenizer.encode(template.render(MESSAGES)) == template.encode(tokenizer.model.model, MESSAGES)
    found: set[str] = set()

    class Model(torch.nn.Module):
        def load_weights(self, weights: Any) -> None:
            found.update(name for name, _ in weights)

    ModelWeightLoader(str(merged)).load_model_weights(Model())
    assert found == set(load_file(merged / "model.safetensors"))


def test_references_to_a_repository_become_references_to_the_files_beside(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text("utf-8"))
    config["auto_map"] = {key: f"someone/tiny--{value}" for key, value in config["auto_map"].items()}
    config["_name_or_path"] = str(base)
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    (base / "chat_template.jinja").write_text("another template", "utf-8")
    out = full_merge(base, tmp_path, load_file(base / "model.safetensors"))
    merged_config = json.loads((out / "config.json").read_text("utf-8"))
    assert merged_config["auto_map"]["AutoConfig"] == "configuration_internlm2.InternLM2Config"
    assert "_name_or_path" not in merged_config
    assert not (out / "chat_template.jinja").exists()


def test_existing_output_is_refused_and_then_replaced(tiny_base: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_base / "model.safetensors")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/notes.txt").write_text("mine", "utf-8")
    (tmp_path / "merged/huanhuan.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="--overwrite"):
        full_merge(tiny_base, tmp_path, tensors)
    assert (tmp_path / "merged/notes.txt").read_text("utf-8") == "mine"
    full_merge(tiny_base, tmp_path, tensors, overwrite=True)
    assert not (tmp_path / "merged/notes.txt").exists()
    assert (tmp_path / "merged/model.safetensors").is_file()


def test_output_may_not_replace_the_base_or_the_checkpoint(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "merged" / "base"
    shutil.copytree(tiny_base, base)
    (tmp_path / "merged/huanhuan.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="needed"):
        full_merge(base, tmp_path, load_file(base / "model.safetensors"), overwrite=True)
    assert (base / "model.safetensors").is_file()


def test_a_full_disk_is_noticed_before_writing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 2**20

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(UserError, match="disk space"):
        full_merge(tiny_base, tmp_path, load_file(tiny_base / "model.safetensors"))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "fault", ["no weights", "truncated", "no shard", "quantised", "no tokenizer", "other tokenizer"]
)
def test_a_broken_base_is_one_line(make_base: Callable[..., Path], tiny_base: Path, tmp_path: Path, fault: str) -> None:
    source = make_base() if fault == "no shard" else tiny_base
    base = tmp_path / "base"
    shutil.copytree(source, base)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(base.glob("*.safetensors")):
        tensors |= load_file(file)
    if fault == "no weights":
        (base / "model.safetensors").unlink()
    elif fault == "truncated":
        content = (base / "model.safetensors").read_bytes()
        (base / "model.safetensors").write_bytes(content[:-100])
    elif fault == "no shard":
        next(base.glob("model-00002*.safetensors")).unlink()
    elif fault == "quantised":
        config = json.loads((base / "config.json").read_text("utf-8"))
        (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}), "utf-8")
    elif fault == "no tokenizer":
        for file in base.glob("*token*"):
            file.unlink()
    else:
        settings = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
        settings["add_bos_token"] = False
        (base / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    with pytest.raises(UserError) as caught:
        full_merge(base, tmp_path, tensors)
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_weights_in_an_odd_type_are_read(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(8, dtype=torch.float64)
    tensors["model.counter"] = torch.tensor(3)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    trained = {name: tensor for name, tensor in tensors.items() if "inv_freq" not in name}
    out = full_merge(base, tmp_path, trained, dtype="fp16")
    written = load_file(out / "model.safetensors")
    assert written["model.counter"].dtype == torch.int64 and written["model.counter"].item() == 3
    assert written["model.layers.0.attention.rotary_emb.inv_freq"].shape == (8,)
    assert written["model.norm.weight"].dtype == torch.float16


def test_the_base_tokenizer_is_proven(tiny_base: Path) -> None:
    assert template.END in load_tokenizer(tiny_base).get_vocab()
