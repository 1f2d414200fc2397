"""A small tokenizer that behaves as InternLM2's does: SentencePiece BPE, byte fallback, the same chat tokens.

The released tokenizer's own code travels with the weights and cannot be used without them, so Transformers'
Llama tokenizer reads the SentencePiece model instead: it is of the same kind. Two of its settings matter to
the chat template. No space is put before a text (``add_prefix_space``), because XTuner encodes a
conversation piece by piece and a piece must become the same ids as inside the whole; and the text is
normalised in no way, because SentencePiece's default turns ``，`` into ``,``.

As in InternLM2's vocabulary, each role word is one token and so are two newlines in a row: what can go wrong
with the released tokenizer at the seam of a template can go wrong with this one.
"""

from __future__ import annotations

import errno
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huanhuan.errors import UserError
from huanhuan.files import write_bytes
from huanhuan.template import END, START

if TYPE_CHECKING:
    from transformers import LlamaTokenizerFast

# In the order of InternLM2's own vocabulary, at whose end they stand.
CHAT_TOKENS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", END, START)
# <unk>, <s>, </s> and one token for each byte.
FIXED_TOKENS = 3 + 256
ROLES = ("system", "user", "assistant")
NEWLINES = ("\n", "\n\n")
# The letters of the role words and what they are merged from.
ROOM_FOR_ROLES = 40
SMALLEST_VOCAB = FIXED_TOKENS + len(NEWLINES) + ROOM_FOR_ROLES


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    """A serialised SentencePiece BPE model of at most ``vocab_size`` pieces, learnt from ``texts``.

    The same texts give the same bytes. A text too short for so many pieces gives fewer.

    Raises: UserError if ``texts`` hold no text or ``vocab_size`` leaves no room for a piece.
    """
    import sentencepiece
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyright: ignore[reportAttributeAccessIssue]

    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError("分词器没有可学的文字 / no text to learn a tokenizer from: check the script")
    if vocab_size < SMALLEST_VOCAB:
        raise UserError(f"vocab_size {vocab_size}: 词表太小 / too small: give at least {SMALLEST_VOCAB}")
    # SentencePiece refuses a vocabulary without room for every character; a left-out one is spelt in bytes.
    common = {letter for letter, _ in Counter("".join(lines)).most_common(vocab_size - SMALLEST_VOCAB + 1)}
    lines = "".join(letter if letter in common else "\n" for letter in "\n".join(lines)).splitlines()
    # More often than any pair of the text, so that the words are merged before the room is used up.
    roles = list(ROLES) * sum(map(len, lines))
    model_bytes = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines + roles),
        model_writer=model_bytes,
        model_type="bpe",
        vocab_size=vocab_size - len(NEWLINES),
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        max_sentence_length=1 << 20,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    # SentencePiece reads its text by lines, so it learns no piece with a newline; a score is a rank in BPE.
    model = ModelProto.FromString(model_bytes.getvalue())
    for piece in NEWLINES:
        model.pieces.add(piece=piece, score=model.pieces[-1].score - 1)
    return model.SerializeToString(deterministic=True)


def build_tokenizer(texts: Iterable[str], folder: Path, vocab_size: int) -> LlamaTokenizerFast:
    """Learn a tokenizer from ``texts`` and save it in ``folder``; return what ``AutoTokenizer`` loads from there.

    ``vocab_size`` is the most tokens it may have, chat tokens included. Ids are laid out as InternLM2's:
    ``<unk>`` 0, ``<s>`` 1, ``</s>`` 2, then bytes and pieces, the chat tokens last.

    Raises: UserError as :func:`train_sentencepiece`; OSError if the folder cannot be written.
    """
    from transformers import AddedToken, LlamaTokenizer, LlamaTokenizerFast

    model_file = Path(folder) / "tokenizer.model"
    write_bytes(model_file, train_sentencepiece(texts, vocab_size - len(CHAT_TOKENS)))
    slow = LlamaTokenizer(str(model_file), pad_token="</s>", legacy=False, add_prefix_space=False)
    chat_tokens: Any = [AddedToken(each, normalized=False, special=True) for each in CHAT_TOKENS]
    slow.add_special_tokens({"additional_special_tokens": chat_tokens})
    slow.save_pretrained(str(folder))
    fast = LlamaTokenizerFast.from_pretrained(str(folder), from_slow=True, legacy=False, add_prefix_space=False)
    try:
        fast.save_pretrained(str(folder))
    except Exception as error:
        # What the tokenizers library cannot write it reports in an exception of no kind.
        if type(error) is not Exception:
            raise
        raise OSError(errno.EIO, str(error), str(folder)) from error
    return LlamaTokenizerFast.from_pretrained(str(folder))
