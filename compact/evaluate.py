"""Bits per byte: total negative log2-likelihood of a text over its UTF-8 bytes.

Token-level perplexity cannot be compared across vocabularies; bits per byte can. Windows of `window` positions move by
half of it, or by `stride`; every token but a first one without BOS is scored exactly once, with at least the rest of a
window as its context where the text has it. The scoring itself is a callable, so that Transformers and llama.cpp share
the method.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compact.calibration import read_documents
from compact.errors import CalibrationError, UsageError
from compact.progress import SILENT, Progress
from compact.sentencepiece_bpe import SPACE_MARK, is_byte_token, is_sentencepiece_bpe, space_prefix
from compact.store import sha256_json

DEFAULT_WINDOW = 2048

# ids [T] -> natural-log probability of ids[1:], [T - 1], each given all ids before it.
Score = Callable[[Sequence[int]], np.ndarray[Any, np.dtype[np.float64]]]


@dataclass(frozen=True)
class Evaluation:
    """Bits per byte of one model on one text.

    Attributes:
        bits_per_byte: total negative log2-likelihood / `n_bytes`.
        n_bytes: UTF-8 bytes of the scored tokens.
        n_tokens: tokens scored.
        n_characters: characters of the whole text.
        window: positions of a window, BOS included.
        text_sha256: of the text.
    """

    bits_per_byte: float
    n_bytes: int
    n_tokens: int
    n_characters: int
    window: int
    text_sha256: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_text(path: Path, *, split: str = "all") -> str:
    """The text of a file; the records of a `.jsonl` (field `text` or `context`) joined by a blank line.

    Args:
        path: text, jsonl or parquet.
        split: `all`, `train` (the first 80% of the characters) or `held-out` (the last 20%).
    """
    text = "\n\n".join(read_documents(path))
    boundary = len(text) * 4 // 5
    return {"all": text, "train": text[:boundary], "held-out": text[boundary:]}[split]


def windows(n_tokens: int, size: int, *, first: int, stride: int | None = None) -> Iterator[tuple[int, int, int]]:
    """(begin, end, scored from) of every window over `n_tokens` ids.

    Args:
        n_tokens: length of the text in tokens.
        size: tokens of a window, BOS not counted; at least 1 with BOS and 2 without.
        first: the first token to score, 0 with BOS and 1 without.
        stride: tokens from one window to the next; half a window by default, and at most what
            leaves every token something before it.
    """
    stride = max(1, size // 2 if stride is None else min(stride, size - first))
    begin, scored = 0, first
    while scored < n_tokens:
        end = min(begin + size, n_tokens)
        yield begin, end, scored
        scored = end
        begin += stride


def evaluate(
    ids: Sequence[int],
    text: str,
    score: Score,
    *,
    bos: int | None,
    first_token_bytes: int,
    window: int,
    stride: int | None = None,
    progress: Progress = SILENT,
    label: str = "evaluating",
) -> Evaluation:
    """Score a text.

    Args:
        ids: the text's token ids, without BOS.
        text: the text.
        score: the model.
        bos: the BOS id where the model puts one before a text; every window then starts with it.
        first_token_bytes: UTF-8 bytes of the first token, which is context only where there is no BOS.
        window: positions, BOS included; the smaller of 2048 and the model's maximum by default.
        stride: as `windows` takes it.

    Raises:
        CalibrationError: the text has fewer than two tokens.
        UsageError: a window of fewer than two positions, in which nothing can be predicted.
    """
    if window < 2:
        raise UsageError(f"--window {window}: at least 2 positions are needed")
    if len(ids) < 2:
        raise CalibrationError("the evaluation text has fewer than two tokens", "give a longer text")
    prefix = [] if bos is None else [bos]
    first = 0 if prefix else 1
    n_bytes = len(text.encode("utf-8", "surrogatepass")) - (0 if prefix else first_token_bytes)
    total = 0.0
    with progress.task(label, len(ids) - first, "tokens") as task:
        for begin, end, scored in windows(len(ids), window - len(prefix), first=first, stride=stride):
            log_probabilities = score([*prefix, *ids[begin:end]])
            # Entry j is the probability of position j + 1 of the window; the last `end - scored` belong to this window.
            total -= float(log_probabilities[len(log_probabilities) - (end - scored) :].sum())
            task.advance(end - scored)
    digest = sha256_json(text.encode("utf-8", "surrogatepass").hex())
    bits = total / float(np.log(2.0)) / n_bytes
    return Evaluation(bits, n_bytes, len(ids) - first, len(text), window, digest)


def hf_score(model: Any) -> Score:
    """Scoring through Transformers: logits in the model's dtype, log-probabilities of them in float64."""
    import torch

    def score(ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
        batch = torch.tensor([list(ids)], dtype=torch.int64, device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=batch, use_cache=False).logits[0, :-1]
            if logits.device.type == "mps":  # which has no float64
                logits, batch = logits.cpu(), batch.cpu()
            result = np.empty(len(ids) - 1, dtype=np.float64)
            for start in range(0, len(result), 256):  # bounds the float64 copy of a large vocabulary's logits
                part = logits[start : start + 256].double().log_softmax(dim=-1)
                target = batch[0, start + 1 : start + 1 + part.shape[0], None]
                result[start : start + part.shape[0]] = part.gather(1, target)[:, 0].cpu().numpy()
        return result

    return score


def token_bytes(tokenizer_json: Path, token_id: int) -> int:
    """UTF-8 bytes of a text that its first token stands for.

    The string of a byte-level token has one character a byte. A SentencePiece-style one is text itself, with marks for
    spaces, of which the first may be the one that the tokenizer puts in front.
    """
    data = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    sentencepiece = is_sentencepiece_bpe(data)
    for entry in data.get("added_tokens") or ():
        if entry["id"] == token_id:
            return len(str(entry["content"]).encode())
    for token, i in data["model"]["vocab"].items():
        if i == token_id and sentencepiece:
            own = token[1:] if token.startswith(SPACE_MARK) and space_prefix(data) else token
            return 1 if is_byte_token(token) else len(own.replace(SPACE_MARK, " ").encode())
        if i == token_id:
            return len(token)
    raise CalibrationError(f"{tokenizer_json}: no token has id {token_id}")


def evaluate_checkpoint(
    directory: Path,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = SILENT,
    label: str = "evaluating",
) -> Evaluation:
    """Bits per byte of a Hugging Face checkpoint directory on a text."""
    from compact.importance import load_model, resolve_device, resolve_dtype
    from compact.tokenizer import bos_id, encode, load_tokenizer

    place = resolve_device(device)
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, device=place, dtype=resolve_dtype(dtype, place))
    ids = encode(tokenizer, [text], add_special_tokens=False)[0]
    positions = int(getattr(model.config, "max_position_embeddings", DEFAULT_WINDOW))
    return evaluate(
        ids,
        text,
        hf_score(model),
        bos=bos_id(tokenizer),
        first_token_bytes=token_bytes(directory / "tokenizer.json", ids[0]) if ids else 0,
        window=min(window or DEFAULT_WINDOW, positions),
        stride=stride,
        progress=progress,
        label=label,
    )
