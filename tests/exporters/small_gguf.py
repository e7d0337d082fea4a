"""Small models for the tests of this folder: made on the spot, no network, no file outside the test's directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from compact.architectures.table import family_of
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.quant_rules import ModelShape

VOCAB = 380
TEXT = (
    "The lighthouse keeper counted the waves. One for every ship that came home, two for every storm he had seen. "
    "In winter the rocks wore ice like old men wear coats, and the lamp turned slowly above them.\n"
    "def count(waves):\n    return sum(1 for wave in waves if wave.height > 2.5)\n"
)


def shapes(
    *, n_layer: int, hidden: int, n_ff: int, n_head: int, n_head_kv: int, vocab: int, tied: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, numpy shape) of the tensors of a Llama GGUF."""
    head = hidden // n_head
    yield "token_embd.weight", (vocab, hidden)
    for index in range(n_layer):
        block = f"blk.{index}."
        yield block + "attn_norm.weight", (hidden,)
        yield block + "attn_q.weight", (hidden, hidden)
        yield block + "attn_k.weight", (n_head_kv * head, hidden)
        yield block + "attn_v.weight", (n_head_kv * head, hidden)
        yield block + "attn_output.weight", (hidden, hidden)
        yield block + "ffn_norm.weight", (hidden,)
        yield block + "ffn_gate.weight", (n_ff, hidden)
        yield block + "ffn_up.weight", (n_ff, hidden)
        yield block + "ffn_down.weight", (hidden, n_ff)
    yield "output_norm.weight", (hidden,)
    if not tied:
        yield "output.weight", (vocab, hidden)


def random_gguf(path: Path, *, arch: str = "llama", seed: int = 0, most_rows: int | None = None, **sizes: Any) -> Path:
    """A GGUF of random float16 matrices without a vocabulary: enough to be quantised, not to be run.

    `most_rows` leaves out rows of the matrices: no rule of the types depends on their number, and the work does.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch)
    _hyperparameters(writer, sizes, context=256)
    for name, full in shapes(**sizes):
        shape = full if len(full) == 1 else (full[0] if most_rows is None else min(full[0], most_rows), full[1])
        kind = np.float32 if len(shape) == 1 else np.float16
        writer.add_tensor(name, (rng.standard_normal(shape, dtype=np.float32) * 0.05).astype(kind))
    _finish(writer)
    return path


def make_tokenizer(vocab: int = VOCAB) -> Tokenizer:
    """A byte-level BPE tokenizer in GPT-2's manner, with all 256 bytes and two special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


def save_checkpoint(directory: Path, *, tied: bool, seed: int = 0, hidden: int = 64, n_ff: int = 96) -> Path:
    """A random LlamaForCausalLM with its tokenizer, as Transformers saves it (float32)."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=n_ff,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Initial weights are so small that all logits are alike: no test would see a mixed-up tensor.
            parameter.add_(torch.randn_like(parameter) * 0.08)
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(directory)
    return directory


def write_gguf(directory: Path, path: Path) -> Path:
    """The float32 GGUF of `save_checkpoint`'s model, written here by hand as an independent reference."""
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    config = model.config
    family = family_of({"architectures": ["LlamaForCausalLM"]}, "config.json")
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {
        "n_layer": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "n_ff": config.intermediate_size,
        "n_head": config.num_attention_heads,
        "n_head_kv": config.num_key_value_heads,
        "vocab": config.vocab_size,
    }
    _hyperparameters(writer, sizes, context=config.max_position_embeddings)
    _vocabulary(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor
        heads = family.heads_to_permute(name, config.to_dict())
        if heads is not None:
            rows, columns = values.shape
            values = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(family.gguf_name(name), values.contiguous().numpy())
    _finish(writer)
    return path


def encode(directory: Path, text: str) -> list[int]:
    """Token ids by Hugging Face's tokenizer."""
    ids: list[int] = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids
    return ids


def reference_logits(directory: Path, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits [T, V] by Transformers in float32."""
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: np.ndarray[Any, np.dtype[np.float32]] = model(torch.tensor([list(ids)])).logits[0].numpy()
    return logits


def _hyperparameters(writer: gguf.GGUFWriter, sizes: dict[str, Any], context: int) -> None:
    writer.add_context_length(context)
    writer.add_embedding_length(sizes["hidden"])
    writer.add_block_count(sizes["n_layer"])
    writer.add_feed_forward_length(sizes["n_ff"])
    writer.add_head_count(sizes["n_head"])
    writer.add_head_count_kv(sizes["n_head_kv"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(sizes["vocab"])
    writer.add_rope_dimension_count(sizes["hidden"] // sizes["n_head"])


def _vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    import json

    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    control = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in by_id])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in control else gguf.TokenType.NORMAL for token, _ in by_id]
    )
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_imatrix(model: ModelShape) -> Imatrix:
    rng = np.random.default_rng(1)
    names = [t for t in model.tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    means = {t.name: rng.random(t.row, dtype=np.float32) + np.float32(0.01) for t in names}
    return Imatrix(means, {name: np.array([1], dtype=np.int64) for name in means}, tokens=1)
