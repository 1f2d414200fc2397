"""The tiny InternLM2: its tokenizer, its folder, and what it may read before it is tuned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from huanhuan.errors import UserError
from huanhuan.persona import Persona
from huanhuan.template import CONTROL_TOKENS, END, START, clean, encode, stop_ids
from huanhuan.training.pretrain import PretrainSettings, lr_factor, pretrain, token_stream
from huanhuan.training.pretrain_text import read_base_texts
from huanhuan.training.tiny_base import build_random_base, level_unseen_rows, random_model
from huanhuan.training.tiny_tokenizer import CHAT_TOKENS, build_tokenizer, train_sentencepiece

TEXTS = ("雨停了，院子里积着水。", "她说：“我明天一早就走。”", "你几时回来？", "等海棠开了，我便回来。", "I will wait.")
# Without the space mark, which every SentencePiece tokenizer gives back as a space, and half surrogate pairs.
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁")).filter(
    lambda text: not any(token in text for token in CONTROL_TOKENS)
)


@pytest.fixture(scope="module")
def slow_tokenizer(tiny_base: Path) -> Any:
    """SentencePiece itself, which LMDeploy's older readers and `use_fast=False` take."""
    return AutoTokenizer.from_pretrained(tiny_base, use_fast=False)


@pytest.fixture(scope="module")
def tiny_model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_base, trust_remote_code=True)


# The tokenizer


def test_ids_are_laid_out_as_in_internlm2(tiny_tokenizer: Any) -> None:
    size = len(tiny_tokenizer)
    assert tiny_tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert tiny_tokenizer.convert_tokens_to_ids(list(CHAT_TOKENS)) == list(range(size - 6, size))
    assert set(CHAT_TOKENS) <= set(CONTROL_TOKENS)
    assert tiny_tokenizer.encode("好")[0] == tiny_tokenizer.bos_token_id == 1


def test_template_words_and_newlines_are_single_tokens(tiny_tokenizer: Any) -> None:
    for word in ("system", "user", "assistant", "\n", "\n\n", START, END):
        assert len(tiny_tokenizer.encode(word, add_special_tokens=False)) == 1, word
    assert len(tiny_tokenizer.encode("\n\n\n", add_special_tokens=False)) == 2


def test_text_is_not_normalised(tiny_tokenizer: Any) -> None:
    for text in ("，。！？：；（）“”", "ＡＢＣ１２３", "  两格  ", "\u3000全角", "①②", "fi"):
        assert tiny_tokenizer.decode(tiny_tokenizer.encode(text, add_special_tokens=False)) == text


@given(ANY_TEXT)
@settings(deadline=None)
def test_any_text_survives_and_both_tokenizers_agree(tiny_tokenizer: Any, slow_tokenizer: Any, text: str) -> None:
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    assert tiny_tokenizer.decode(ids) == text
    assert slow_tokenizer.encode(text, add_special_tokens=False) == ids
    assert tiny_tokenizer.unk_token_id not in ids


@given(ANY_TEXT, ANY_TEXT)
@settings(deadline=None)
def test_a_piece_has_the_same_ids_alone_and_inside_the_whole(tiny_tokenizer: Any, asked: str, said: str) -> None:
    pieces = [f"{START}user\n{clean(asked)}{END}\n{START}assistant\n", f"{clean(said)}{END}", "\n"]
    alone = [token for piece in pieces for token in tiny_tokenizer.encode(piece, add_special_tokens=False)]
    assert tiny_tokenizer.encode("".join(pieces), add_special_tokens=False) == alone


def test_same_texts_give_the_same_tokenizer() -> None:
    assert train_sentencepiece(TEXTS, 400) == train_sentencepiece(TEXTS, 400)


def test_vocabulary_is_limited_and_a_short_text_gives_fewer(tmp_path: Path) -> None:
    many = [chr(code) for code in range(0x4E00, 0x4E00 + 900)]
    assert len(build_tokenizer(many, tmp_path / "many", 600)) <= 600
    assert len(build_tokenizer(TEXTS, tmp_path / "few", 5000)) < 500


@pytest.mark.parametrize(
    ("texts", "size", "said"), [((), 400, "no text"), (("\n \n",), 400, "no text"), (TEXTS, 264, "too small")]
)
def test_what_no_tokenizer_can_be_learnt_from(texts: tuple[str, ...], size: int, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        train_sentencepiece(texts, size)
    assert "\n" not in str(error.value)


# The folder


def test_folder_loads_and_replies_in_a_process_without_network(tiny_base: Path) -> None:
    program = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = tokenizer("你好", return_tensors="pt")
output = model.generate(**ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
print(type(model).__name__, model.dtype, output.shape[1] - ids.input_ids.shape[1], model.generation_config.eos_token_id)
"""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    result = subprocess.run(
        [sys.executable, "-c", program, str(tiny_base)],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_base, trust_remote_code=True)
    assert result.stdout.split() == f"InternLM2ForCausalLM torch.float32 5 {stop_ids(tokenizer)}".split(), result.stderr


def test_folder_holds_what_a_released_checkpoint_holds(tiny_base: Path) -> None:
    config = json.loads((tiny_base / "config.json").read_text())
    assert config["architectures"] == ["InternLM2ForCausalLM"]
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_internlm2.InternLM2ForCausalLM"
    assert {"modeling_internlm2.py", "configuration_internlm2.py", "tokenizer.model", "model.safetensors"} <= {
        file.name for file in tiny_base.iterdir()
    }
    assert all(file.stat().st_mode & 0o044 for file in tiny_base.iterdir() if os.umask(os.umask(0o022)) == 0o022)


def test_lmdeploy_reads_the_folder(tiny_base: Path, tiny_tokenizer: Any) -> None:
    from lmdeploy.pytorch.config import ModelConfig
    from lmdeploy.tokenizer import Tokenizer

    config = ModelConfig.from_pretrained(str(tiny_base), trust_remote_code=True)
    assert (config.num_layers, config.num_key_value_heads, config.head_dim) == (2, 2, 16)
    assert config.vocab_size == len(tiny_tokenizer)
    prompt = f"{START}user\n你是谁？{END}\n{START}assistant\n"
    theirs = Tokenizer(str(tiny_base)).encode(prompt, add_bos=True)
    assert theirs == encode(tiny_tokenizer, [{"role": "user", "content": "你是谁？"}])


def test_same_seed_gives_the_same_weights(tiny_base: Path, tiny_model: Any, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    again = build_random_base(tmp_path / "again", TEXTS)
    other = build_random_base(tmp_path / "other", TEXTS, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were touched"
    first, second = (folder / "model.safetensors" for folder in (again, other))
    assert first.read_bytes() == (build_random_base(tmp_path / "third", TEXTS) / "model.safetensors").read_bytes()
    assert first.read_bytes() != second.read_bytes()


def test_marker_rows_get_the_median_norm_and_keep_their_direction() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0], [0.03, 0.04], [0.0, 90.0]])
    level_unseen_rows(weight, [3, 4])
    assert weight.norm(dim=1).tolist() == pytest.approx([5, 1, 2, 2, 2])
    assert weight[3].tolist() == pytest.approx([1.2, 1.6])


def test_marker_rows_of_a_built_base_are_level(tiny_model: Any, tiny_tokenizer: Any) -> None:
    markers = tiny_tokenizer.convert_tokens_to_ids([START, END])
    for weight in (tiny_model.model.tok_embeddings.weight, tiny_model.output.weight):
        norms = weight.detach().norm(dim=1)
        others = torch.ones(len(norms), dtype=torch.bool)
        others[markers] = False
        torch.testing.assert_close(norms[markers], norms[others].median().expand(2))


def test_sizes_that_do_not_divide_are_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="must divide"):
        random_model(tiny_tokenizer, hidden=64, layers=1, heads=5, kv_heads=1)


# Pretraining


def small_model(tokenizer: Any) -> Any:
    return random_model(tokenizer, hidden=32, layers=1, heads=2, kv_heads=1, init_std=0.08)


def test_stream_marks_where_documents_begin_and_end(tiny_tokenizer: Any) -> None:
    one, two = (tiny_tokenizer.encode(text, add_special_tokens=False) for text in TEXTS[:2])
    assert token_stream(tiny_tokenizer, TEXTS[:2]) == [1, *one, 2, 1, *two, 2]


def test_pretraining_learns_and_repeats_itself(tiny_tokenizer: Any) -> None:
    how = PretrainSettings(steps=30, batch=4, length=16, lr=1e-2, warmup=3)
    runs = [pretrain(small_model(tiny_tokenizer), tiny_tokenizer, TEXTS, how) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 30
    assert sum(runs[0][-5:]) / 5 < 0.7 * runs[0][0]


def test_a_text_shorter_than_a_window_can_be_read(tiny_tokenizer: Any) -> None:
    losses = pretrain(small_model(tiny_tokenizer), tiny_tokenizer, ["好。"], PretrainSettings(steps=2, length=512))
    assert len(losses) == 2


def test_nothing_to_read_is_an_error(tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no text to pretrain"):
        pretrain(small_model(tiny_tokenizer), tiny_tokenizer, [" \n"], PretrainSettings(steps=1))


def test_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    how = PretrainSettings(steps=100, warmup=10)
    factors = [lr_factor(step, how) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.11)


# What it reads

SCRIPT = """第一集

第1幕
甲：今天风大，海棠要落了。
嬛：落了也好，省得人惦记。
乙：不惦记海棠，惦记谁？
嬛：谁也不惦记。

第2幕
甲：这封信是谁写的？
嬛：写信的人不愿意说。
甲、嬛：我们一起去看看。

第3幕
乙：没有她的一场，谁也不答。

第4幕
甲：这一场留给验证。
嬛：那便留着。
"""
PERSONA = Persona(
    name="嬛", aliases=(), system="系统", greeting="你好", starters=("今天风大，海棠要落了。",), identity=()
)


def record(asked: str, said: str, first: int, last: int, file: str = "s.txt") -> str:
    exchange = {"system": "系统", "input": asked, "output": said}
    return json.dumps({"conversation": [exchange], "source": {"file": file, "lines": [first, last]}})


@pytest.fixture
def converted(tmp_path: Path) -> Iterator[Path]:
    """A folder with a script and training files as the converter writes them."""
    (tmp_path / "s.txt").write_text(SCRIPT, "utf-8")
    train = [
        record("今天风大，海棠要落了。", "落了也好，省得人惦记。", 4, 7),
        record("这封信是谁写的？", "写信的人。", 10, 11),
    ]
    train.append(record("你是谁？", "我是嬛。", 3, 5, "persona.toml"))
    (tmp_path / "train.jsonl").write_text("\n".join(train) + "\n", "utf-8")
    (tmp_path / "val.jsonl").write_text(record("这一场留给验证。", "那便留着。", 18, 19) + "\n", "utf-8")
    yield tmp_path


def read(folder: Path, script: str = "s.txt") -> Any:
    return read_base_texts([folder / script], folder, PERSONA, Path("persona.toml"))


def test_only_training_scenes_are_read_and_without_her_lines(converted: Path) -> None:
    texts = read(converted)
    assert texts.scenes == ("今天风大，海棠要落了。\n不惦记海棠，惦记谁？", "这封信是谁写的？")
    assert "我是嬛。" in texts.vocabulary
    assert not any("验证" in text for text in texts.vocabulary)


def test_a_scene_with_a_held_out_record_is_never_read(converted: Path) -> None:
    (converted / "val.jsonl").write_text(record("这封信是谁写的？", "写信的人。", 10, 11) + "\n", "utf-8")
    assert read(converted).scenes == ("今天风大，海棠要落了。\n不惦记海棠，惦记谁？",)


def test_training_files_of_another_script_are_all_named(converted: Path) -> None:
    (converted / "other.txt").write_text(SCRIPT, "utf-8")
    with pytest.raises(UserError) as error:
        read(converted, "other.txt")
    assert [problem.split(": ")[0] for problem in error.value.problems] == [
        str(converted / "train.jsonl:1"),
        str(converted / "train.jsonl:2"),
        str(converted / "val.jsonl:1"),
    ]


@pytest.mark.parametrize("name", ["train.jsonl", "val.jsonl"])
def test_missing_or_broken_training_file(converted: Path, name: str) -> None:
    (converted / name).write_text("{\n", "utf-8")
    with pytest.raises(UserError, match=rf"{name}:1: .*not JSON"):
        read(converted)
    (converted / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: .*dialogue_to_jsonl"):
        read(converted)


def test_an_empty_val_file_holds_nothing_out(converted: Path) -> None:
    (converted / "val.jsonl").write_text("", "utf-8")
    assert len(read(converted).scenes) == 2


def test_every_fault_of_a_training_file_is_told(converted: Path) -> None:
    content = (converted / "train.jsonl").read_text("utf-8")
    (converted / "train.jsonl").write_text(content + '[]\n{"conversation": [{"input": "a"}]}\n', "utf-8")
    with pytest.raises(UserError) as error:
        read(converted)
    places = [problem.split(": ")[0] for problem in error.value.problems]
    assert places == [str(converted / "train.jsonl:4"), str(converted / "train.jsonl:5")]


def test_a_record_must_say_where_it_comes_from(converted: Path) -> None:
    content = (converted / "train.jsonl").read_text("utf-8")
    (converted / "train.jsonl").write_text('\n{"conversation": [{"input": "a", "output": "b"}]}\n' + content, "utf-8")
    with pytest.raises(UserError) as error:
        read(converted)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(f"{converted / 'train.jsonl'}:2: [source] ")


def test_a_script_in_which_nobody_speaks_is_told_first(converted: Path) -> None:
    (converted / "other.txt").write_text("", "utf-8")
    with pytest.raises(UserError) as error:
        read(converted, "other.txt")
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith("other.txt (0 ")
