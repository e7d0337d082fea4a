"""Small random Hugging Face checkpoints, and llama.cpp's vocabulary in a child process.

The weights are random and the tokenizer is trained on the spot, so a checkpoint takes milliseconds and no download.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from compact.architectures.layout import expected_shapes
from compact.architectures.table import FAMILIES
from compact.vocabulary.pretokenizers import tokenizer_parts
from tests.family_models import VARIANTS

TEXTS = (
    "The quick brown fox doesn't jump; she'd rather read. I'LL SEE, WE'VE SEEN, they're there!",
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # 42 times, 1234567 items, 12.50 or 1,000\n\n\n",
    "Größe, naïve café, Ελληνικά, Привет мир, שלום, مرحبا, 今天天气很好。日本語のテキスト、한국어 문장",
    "  leading spaces\tand\ttabs   \n \n\r\n  trailing   ",
    "क्या हाल है? ภาษาไทย — “quotes” … 🚀🦙👩‍🚀 x² ½ Ⅷ №5",
    "https://example.org/a_b?c=d&e=%20#f <tag attr='v'>text</tag> {\"k\": [1, 2.5e-3, null]} $x_{i+1}$ a'b 'tis",
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = "<tool>"
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def train_tokenizer(pre: str = "gpt-2", *, vocab_size: int = 420, bos: bool = False) -> dict[str, Any]:
    """A tokenizer.json of byte-level BPE with this pre-tokenizer, three special tokens and one plain added token."""
    document: dict[str, Any] = json.loads(_trained(vocab_size))
    parts = tokenizer_parts(pre)
    document.update({key: parts[key] for key in ("normalizer", "pre_tokenizer", "decoder")})
    document["model"]["ignore_merges"] = parts["ignore_merges"]
    document["post_processor"] = bos_processor() if bos else None
    return document


@cache
def _trained(vocab_size: int) -> str:
    """The tokenizer.json before its parts are set; most checkpoints have the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens([AddedToken(USER_DEFINED, special=False, normalized=False)])
    return str(tokenizer.to_str())


def bos_processor() -> dict[str, Any]:
    """A post_processor that puts `<|im_start|>` (id 1) before a text."""
    token = SPECIALS[1]
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [1], "tokens": [token]}},
    }


def model_config(family: str, vocab_size: int, **changes: Any) -> dict[str, Any]:
    """A config.json of a family's layout with small sizes; `changes` are put on top (None removes a key)."""
    row = next(row for row in FAMILIES if row.model_type == family)
    usual = next(iter(VARIANTS[row.architecture].values()))
    config: dict[str, Any] = {
        "architectures": [row.architecture],
        "model_type": family,
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "vocab_size": vocab_size,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **({"vocab_size_per_layer_input": vocab_size} if row.per_layer_inputs else {}),
        **usual,
        **changes,
    }
    return {key: value for key, value in config.items() if value is not None}


def random_weights(config: Mapping[str, Any], dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors of the layout; norms around 1 (as the model computes them), biases small."""
    row = next(row for row in FAMILIES if row.model_type == config["model_type"])
    torch.manual_seed(seed)
    weights = {}
    for name, shape in expected_shapes(row, config, 10_000, "test").items():
        values = torch.randn(shape) * 0.05
        if name.endswith("norm.weight"):
            # Gemma's 1 + w is exact both ways for weights of this size with bfloat16's digits, as published ones have.
            away = (torch.sign(values) * (values.abs() + 0.01)).bfloat16().float()
            values = away if row.norm_shift(name) else values + 1
        elif name.endswith("layer_scalar"):
            values += 0.75
        weights[name] = values.to(dtype)
    return weights


def write_checkpoint(
    out: Path,
    family: str = "llama",
    *,
    pre: str = "gpt-2",
    dtype: torch.dtype = torch.bfloat16,
    padding: int = 0,
    bos: bool = False,
    shards: int = 1,
    tokenizer: Mapping[str, Any] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    **config_changes: Any,
) -> Path:
    """Write a random checkpoint.

    Args:
        out: the directory to make.
        family: a `model_type` of the family table.
        pre: pre-tokenizer's row, for a tokenizer trained here.
        dtype: dtype of every tensor.
        padding: embedding rows beyond the tokenizer.
        bos: the tokenizer adds BOS.
        shards: number of safetensors files.
        tokenizer: a tokenizer.json to use instead.
        weights: tensors to use instead of random ones.
        config_changes: changes of config.json (None removes a key).
    """
    out.mkdir(parents=True)
    document = dict(tokenizer) if tokenizer is not None else train_tokenizer(pre, bos=bos)
    ids = [*document["model"]["vocab"].values(), *(token["id"] for token in document["added_tokens"])]
    config = model_config(family, max(ids) + 1 + padding, **config_changes)
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (out / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    names = {"bos_token": SPECIALS[1], "eos_token": SPECIALS[2], "pad_token": SPECIALS[0]}
    texts = {*document["model"]["vocab"], *(token["content"] for token in document["added_tokens"])}
    named = {key: text for key, text in names.items() if text in texts}
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE, **named}
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    tensors = dict(weights if weights is not None else random_weights(config, dtype))
    if shards == 1:
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return out
    weight_map = {}
    for number in range(shards):
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, out / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return out


def random_model(out: Path, architecture: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A random checkpoint whose attention is sharp: positions, windows and scales show in the logits."""
    family = next(row for row in FAMILIES if row.architecture == architecture)
    settings = {**next(iter(VARIANTS[architecture].values())), **settings}
    tokenizer = train_tokenizer("gpt-2")
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    weights = random_weights(model_config(family.model_type, max(ids) + 1, **settings), torch.float32)
    for name in weights:
        if ".q_norm." in name or ".k_norm." in name:
            weights[name] += 1
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] *= 6
        elif name.endswith(("v_proj.weight", "o_proj.weight")):
            weights[name] *= 3
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    return write_checkpoint(out, family.model_type, tokenizer=tokenizer, weights=weights, dtype=dtype, **settings)


def copy_checkpoint(source: Path, out: Path, **config_changes: Any) -> Path:
    """A copy with changes in config.json (None removes a key)."""
    shutil.copytree(source, out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config.update(config_changes)
    kept = {key: value for key, value in config.items() if value is not None}
    (out / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return out


_CHILD = """
import json, sys
import llama_cpp
job = json.load(sys.stdin)
answers = []
for path in job["paths"]:
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    answers.append({
        "ids": [model.tokenize(text.encode(), add_bos=False, special=True) for text in job["texts"]],
        "add_bos": bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
        "n_vocab": llama_cpp.llama_vocab_n_tokens(vocab),
    })
    model.close()
json.dump(answers, sys.stdout)
"""


def llama_vocabularies(paths: Sequence[Path], texts: Sequence[str]) -> list[dict[str, Any]]:
    """What llama.cpp makes of each GGUF's vocabulary: `ids` of each text, `add_bos`, `n_vocab`. In a child process."""
    job = json.dumps({"paths": [str(path) for path in paths], "texts": list(texts)})
    done = subprocess.run([sys.executable, "-c", _CHILD], input=job, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers
