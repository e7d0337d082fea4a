"""Train `tiny`, the model that ships with the package, on the standard library of this Python only.

    python examples/train_tiny_model.py --minutes 60 --out compact/models/tiny
    python examples/train_tiny_model.py --evaluate compact/models/tiny

The first command trains a byte-level BPE tokenizer and a Qwen2 model of 7.1 million parameters on the training split of
`compact.texts.stdlib_text` and writes a model folder. The second measures a saved folder. Both print JSON with the bits
per byte of held-out text, next to those of ``xz -9`` on the same text.

Progress goes to stderr. The run stops after a given wall time, so its result depends on the speed of the machine. The
split, the tokenizer and the order of the data do not.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import platform
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from compact.texts import stdlib_text

VOCABULARY_SIZE = 16384
CONTEXT = 1024
END_OF_TEXT, MESSAGE_START, MESSAGE_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, MESSAGE_START, MESSAGE_END)

# Qwen2's split before merging, so that every runtime that supports Qwen2 tokenizes this model the same way.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

CHAT_SHARE = 0.05
WARMUP, DECAY_FROM = 0.02, 0.3
REPORT_SECONDS = 15


def log(message: str) -> None:
    """Print progress to stderr, so that stdout contains only the result."""
    print(message, file=sys.stderr, flush=True)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a byte-level BPE with Qwen2's layout: bytes, merges in order, then the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    # The trainer would give special tokens the first ids, so they are added after training.
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
        special_tokens=[],
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE or tokenizer.token_to_id(MESSAGE_END) != VOCABULARY_SIZE - 1:
        raise RuntimeError(f"Expected {VOCABULARY_SIZE} tokens, trained {tokenizer.get_vocab_size()}.")
    return tokenizer


def build_model(tokenizer: Tokenizer) -> Any:
    """Make an untrained Qwen2 for this vocabulary."""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end_of_text,
            pad_token_id=None,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.token_to_id(MESSAGE_END), end_of_text], pad_token_id=end_of_text
    )
    return model


def training_documents(tokenizer: Tokenizer, generator: random.Random) -> list[list[int]]:
    """Encode the training split: code, prose, and enough questions about docstrings to train the chat format."""
    texts = [text + END_OF_TEXT for text in stdlib_text.documents("stdlib", "train")]
    encoded = [item.ids for item in tokenizer.encode_batch(texts)]
    chats = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE)
    questions = list(stdlib_text.docstrings("train"))
    generator.shuffle(questions)
    wanted = CHAT_SHARE * sum(len(ids) for ids in encoded)
    for item in questions:
        messages = [
            {"role": "user", "content": f"What does `{item.name}` do?"},
            {"role": "assistant", "content": item.text},
        ]
        chat = tokenizer.encode(chats.apply_chat_template(messages, tokenize=False) + END_OF_TEXT).ids
        encoded.append(chat)
        wanted -= len(chat)
        if wanted <= 0:
            break
    return encoded


def batches(documents: list[list[int]], size: int, generator: random.Random) -> Iterator[Tensor]:
    """Yield shuffled batches of packed rows forever, each row one token longer than the context."""
    documents = list(documents)
    while True:
        generator.shuffle(documents)
        stream = torch.tensor([token for document in documents for token in document])
        # A new offset each time, so that rows do not always start at the same places.
        starts = list(range(generator.randrange(CONTEXT), len(stream) - CONTEXT, CONTEXT))
        generator.shuffle(starts)
        for first in range(0, len(starts) - size + 1, size):
            yield torch.stack([stream[start : start + CONTEXT + 1] for start in starts[first : first + size]])


class ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy of a linear head, computed a few rows at a time.

    The logits of a batch are far larger than the rest of the model. Computing the gradient along with the loss means
    that no more than one chunk of them exists at a time, which on a CPU saves most of the memory traffic.
    """

    CHUNK = 256

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, and keep the gradients for `backward`."""
        low = weight.to(torch.bfloat16)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight)
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), ChunkedLoss.CHUNK):
            rows = slice(start, start + ChunkedLoss.CHUNK)
            part = hidden[rows].to(torch.bfloat16)
            logarithms = torch.log_softmax((part @ low.T).float(), dim=-1)
            picked = (torch.arange(len(part), device=hidden.device), targets[rows])
            total -= logarithms[picked].sum()
            gradient = logarithms.exp_()
            gradient[picked] -= 1
            rounded = gradient.to(torch.bfloat16)
            hidden_gradient[rows] = (rounded @ low).to(hidden.dtype)
            weight_gradient += rounded.T @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale the gradients found on the way forward."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = outputs[0] / len(hidden_gradient)
        return hidden_gradient * scale, weight_gradient * scale, None


def optimizers(model: Any, muon_rate: float, adam_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding, the norms and the biases."""
    matrices = [value for name, value in model.named_parameters() if value.ndim == 2 and ".layers." in name]
    embeddings = [model.model.embed_tokens.weight]
    vectors = [value for value in model.parameters() if value.ndim == 1]
    return [
        torch.optim.Muon(matrices, lr=muon_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": embeddings, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=adam_rate,
            betas=(0.9, 0.98),
            eps=1e-10,
        ),
    ]


def rate_factor(fraction: float) -> float:
    """Return the share of the full learning rate after `fraction` of the time: warm up, hold, decay to zero."""
    if fraction < WARMUP:
        return max(fraction / WARMUP, 0.01)
    return min(1.0, max(0.0, (1 - fraction) / (1 - DECAY_FROM)))


def train(model: Any, tokenizer: Tokenizer, arguments: argparse.Namespace, device: torch.device) -> int:
    """Train for the given minutes and return the number of tokens seen."""
    generator = random.Random(arguments.seed)
    encoded = training_documents(tokenizer, generator)
    log(f"{len(encoded)} documents, {sum(map(len, encoded))} tokens")
    model.to(device).train()
    pair = optimizers(model, arguments.muon_rate, arguments.adam_rate)
    full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in pair]
    started, seen, mean, reported = time.monotonic(), 0, math.nan, 0.0
    for step, batch in enumerate(batches(encoded, arguments.batch_size, generator)):
        elapsed = time.monotonic() - started
        fraction = elapsed / (60 * arguments.minutes)
        if fraction >= 1:
            break
        for optimizer, rates in zip(pair, full_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * rate_factor(fraction)
        rows = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            hidden = model.model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
        targets = rows[:, 1:].flatten()
        loss = ChunkedLoss.apply(hidden.flatten(0, 1).float(), model.lm_head.weight, targets)  # type: ignore[no-untyped-call]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in pair:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += targets.numel()
        mean = loss.item() if math.isnan(mean) else 0.95 * mean + 0.05 * loss.item()
        if elapsed - reported >= REPORT_SECONDS:
            reported = elapsed
            log(f"step {step} minute {elapsed / 60:.1f} loss {mean:.4f} tokens {seen} per second {seen / elapsed:.0f}")
    return seen


@torch.inference_mode()
def bits_per_byte(model: Any, tokenizer: Tokenizer, text: str, device: torch.device) -> float:
    """Measure a model on a text: negative log2-likelihood over UTF-8 bytes.

    Windows have the full context length and move by half of it. Every token except the first is scored once. Nothing
    predicts the first token, so its bytes are not counted.
    """
    model.eval()
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, device=device)
    stride, scored, total = CONTEXT // 2, 1, 0.0
    while scored < len(ids):
        begin = max(0, min(scored + stride, len(ids)) - CONTEXT) if scored > 1 else 0
        window = ids[begin : begin + CONTEXT]
        logits = model(input_ids=window[None, :-1], use_cache=False).logits[0, scored - begin - 1 :].float()
        targets = window[scored - begin :]
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        scored = begin + len(window)
    # In a byte-level vocabulary, each character of a token represents one byte.
    first = tokenizer.id_to_token(int(ids[0]))
    return total / math.log(2) / (len(text.encode()) - len(first or ""))


def held_out_texts() -> dict[str, str]:
    """Return the held-out texts, by kind."""
    source = "".join(stdlib_text.code("held_out"))
    prose = "".join(stdlib_text.prose("held_out"))
    return {"code": source, "prose": prose, "all": source + prose}


def evaluate(model: Any, tokenizer: Tokenizer, device: torch.device) -> dict[str, dict[str, float]]:
    """Return bits per byte of the model and of xz -9, for each kind of held-out text."""
    figures = {}
    for kind, text in held_out_texts().items():
        raw = text.encode()
        figures[kind] = {
            "bytes": len(raw),
            "model": round(bits_per_byte(model, tokenizer, text, device), 4),
            "xz_9": round(8 * len(lzma.compress(raw, preset=9)) / len(raw), 4),
        }
    return figures


def evaluate_folder(folder: Path, device: torch.device) -> dict[str, Any]:
    """Measure a saved model with the weights as stored, computing in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    check_tokenizer(folder, tokenizer)
    return {
        "python": platform.python_version(),
        "parameters": sum(value.numel() for value in model.parameters()),
        "held_out_bits_per_byte": evaluate(model.to(device), tokenizer, device),
    }


def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Check that transformers reads the tokenizer of the folder correctly.

    The samples are in Unicode normal form C. For Qwen2 models, transformers 5 always converts text to that form. This
    tokenizer does not change it.
    """
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    sample = "\t  x\n\n\n    def caf\u00e9(self):  \r\n" + f"{MESSAGE_START}user\nHi{MESSAGE_END}\n{END_OF_TEXT}"
    for text in (sample, held_out_texts()["prose"]):
        if loaded(text)["input_ids"] != tokenizer.encode(text).ids:
            raise RuntimeError(f"AutoTokenizer and tokenizer.json disagree in {folder}.")


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model folder in bfloat16."""
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    # save_pretrained makes the weights readable by their owner only; a shipped model is for everyone.
    (folder / "model.safetensors").chmod(0o644)
    # transformers 5 nests the base of the rotary embedding; older readers expect it at the top level.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    write_json(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": CONTEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file in the format of the other files in a model folder."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train or evaluate the tiny model.")
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time for training")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("tiny"), help="folder to write the model to")
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="only measure a saved model")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of 1024 tokens per step")
    parser.add_argument("--muon-rate", type=float, default=6e-3, help="learning rate of the matrices")
    parser.add_argument("--adam-rate", type=float, default=6e-3, help="learning rate of everything else")
    return parser.parse_args()


def main() -> None:
    """Train a model, or evaluate one, and print the figures."""
    arguments = parse_arguments()
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted if arguments.device == "auto" else arguments.device)
    if arguments.evaluate:
        print(json.dumps(evaluate_folder(arguments.evaluate, device), indent=2))
        return
    started = time.monotonic()
    torch.manual_seed(arguments.seed)
    tokenizer = train_tokenizer(list(stdlib_text.documents("stdlib", "train")))
    log(f"tokenizer trained in {time.monotonic() - started:.0f} s")
    model = build_model(tokenizer)
    seen = train(model, tokenizer, arguments, device)
    trained = time.monotonic() - started
    before = evaluate(model, tokenizer, device)
    save(model, tokenizer, arguments.out)
    result = evaluate_folder(arguments.out, device)
    result["held_out_bits_per_byte_before_rounding"] = {kind: figures["model"] for kind, figures in before.items()}
    result |= {"tokens_seen": seen, "wall_minutes": round(trained / 60, 1), "seed": arguments.seed}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
