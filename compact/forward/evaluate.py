"""Bits per byte: the total negative log2-likelihood of a text, divided by its UTF-8 bytes.

Unlike perplexity per token, bits per byte can be compared across vocabularies.

A window moves over the text by half its size, or by `stride`. Every token is scored exactly once, in the first window
that contains it. After the first window, a token has at least the overlap of two windows as context. Without BOS, the
first token is not scored, because nothing comes before it.

The functions take the model as a callable, so the same code evaluates Transformers, llama.cpp and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compact.base.errors import CalibrationError, UsageError
from compact.base.files import sha256_json
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import TOKENIZER
from compact.texts.documents import read_documents
from compact.vocabulary.loading import tokenizer_document
from compact.vocabulary.sentencepiece_bpe import SPACE_MARK, is_byte_token, is_sentencepiece_bpe, space_prefix

DEFAULT_WINDOW = 2048

# ids [tokens] -> natural-log probabilities of ids[1:], float64 [tokens - 1], each given all ids before it.
Score = Callable[[Sequence[int]], np.ndarray[Any, np.dtype[np.float64]]]


@dataclass(frozen=True)
class Evaluation:
    """Bits per byte of one model on one text.

    Attributes:
        bits_per_byte: total negative log2-likelihood / `n_bytes`.
        n_bytes: UTF-8 bytes of the scored tokens.
        n_tokens: number of scored tokens.
        n_characters: characters of the whole text.
        window: positions per window, including BOS.
        text_sha256: hash of the text.
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
    """Read the text of a file. Records of jsonl and parquet files (`text` or `context`) are joined by blank lines.

    Args:
        path: a text, jsonl or parquet file.
        split: `all`, `train` (the first 80% of the characters) or `held-out` (the last 20%).
    """
    text = "\n\n".join(read_documents(path))
    boundary = len(text) * 4 // 5
    return {"all": text, "train": text[:boundary], "held-out": text[boundary:]}[split]


def windows(n_tokens: int, size: int, *, first: int, stride: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, first token to score) for every window over `n_tokens` ids.

    Args:
        n_tokens: length of the text in tokens.
        size: tokens per window, without BOS. At least 1 with BOS and 2 without.
        first: the first token of the text to score: 0 with BOS and 1 without.
        stride: tokens from one window to the next, half a window by default. It is limited so that every scored token
            has at least one token (or BOS) before it.
    """
    stride = max(1, size // 2 if stride is None else min(stride, size - first))
    begin, scored = 0, first
    while scored < n_tokens:
        end = min(begin + size, n_tokens)
        yield begin, end, scored
        scored = end
        begin += stride


@dataclass(frozen=True)
class TextScorer:
    """An open model that scores texts.

    Attributes:
        encode: text -> token ids, without BOS.
        score: computes log-probabilities with the model.
        bos: the BOS id if the tokenizer adds BOS to a text, otherwise None.
        window: positions per window, including BOS.
    """

    encode: Callable[[str], list[int]]
    score: Score
    bos: int | None
    window: int


def score_windows(
    ids: Sequence[int],
    score: Score,
    *,
    bos: int | None,
    window: int,
    stride: int | None = None,
    progress: Progress = SILENT,
    label: str = "evaluating",
) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    """Yield natural-log probabilities of a text's tokens, one float64 array per window.

    Together, the arrays have one value per token, in the order of the text. Without BOS, the first token has none.
    Arguments and errors are those of `evaluate`.
    """
    if window < 2:
        raise UsageError(f"--window {window}: at least 2 positions are needed", "give a larger --window")
    if len(ids) < 2:
        raise CalibrationError("the evaluation text has fewer than two tokens", "give a longer text")
    prefix = [] if bos is None else [bos]
    first = 0 if prefix else 1
    with progress.task(label, len(ids) - first, "tokens") as task:
        for begin, end, scored in windows(len(ids), window - len(prefix), first=first, stride=stride):
            log_probabilities = score([*prefix, *ids[begin:end]])
            # Entry j is for position j + 1 of the window. Earlier windows have scored all but the last `end - scored`.
            yield log_probabilities[len(log_probabilities) - (end - scored) :]
            task.advance(end - scored)


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
    """Compute bits per byte of a text.

    Args:
        ids: the text's token ids, without BOS.
        text: the text.
        score: computes log-probabilities with the model.
        bos: the BOS id if the tokenizer adds BOS to a text, otherwise None. Every window begins with BOS.
        first_token_bytes: UTF-8 bytes of the first token. Without BOS, they are not counted.
        window: positions per window, including BOS.
        stride: tokens from one window to the next (see `windows`).
        progress: receives the number of scored tokens.
        label: description of the task.

    Raises:
        CalibrationError: the text has fewer than two tokens.
        UsageError: the window has fewer than two positions.
    """
    parts = score_windows(ids, score, bos=bos, window=window, stride=stride, progress=progress, label=label)
    total = -sum((float(part.sum()) for part in parts), 0.0)
    first = 1 if bos is None else 0
    n_bytes = len(text.encode("utf-8", "surrogatepass")) - (first_token_bytes if first else 0)
    digest = sha256_json(text.encode("utf-8", "surrogatepass").hex())
    bits = total / float(np.log(2.0)) / n_bytes
    return Evaluation(bits, n_bytes, len(ids) - first, len(text), window, digest)


def token_bits(
    model: TextScorer, ids: Sequence[int], *, progress: Progress = SILENT, label: str = "evaluating"
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Compute the bits that each token of a text costs.

    Args:
        model: the model.
        ids: the text's token ids, from `model.encode`.
        progress: receives the number of scored tokens.
        label: description of the task.

    Returns:
        float64 [tokens]. Without BOS, the first token is only context and has 0 bits.

    Raises:
        CalibrationError, UsageError: see `evaluate`.
    """
    scores = score_windows(ids, model.score, bos=model.bos, window=model.window, progress=progress, label=label)
    context = np.zeros(1 if model.bos is None else 0)
    bits: np.ndarray[Any, np.dtype[np.float64]] = np.concatenate([context, *scores]) / -np.log(2.0)
    return bits


def hf_score(model: Any) -> Score:
    """Return a scoring function for a Transformers model.

    The logarithm of the sum of a row is computed in float32. Its error is about 1e-6, and float64 takes three times as
    long for a large vocabulary. Everything after it is float64.
    """
    import torch

    def score(ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
        batch = torch.tensor([list(ids)], dtype=torch.int64, device=model.device)  # [1, positions]
        with torch.inference_mode():
            logits = model(input_ids=batch, use_cache=False).logits[0, :-1]  # [positions - 1, vocab_size]
            if logits.device.type == "mps":  # MPS has no float64
                logits, batch = logits.cpu(), batch.cpu()
            result = np.empty(len(ids) - 1, dtype=np.float64)
            for start in range(0, len(result), 256):  # in steps, to bound the float32 copy of the logits
                part = logits[start : start + 256].float()  # [up to 256, vocab_size]
                target = batch[0, start + 1 : start + 1 + part.shape[0], None]  # [up to 256, 1]
                chosen = part.gather(1, target)[:, 0].double() - part.logsumexp(dim=-1).double()  # [up to 256]
                result[start : start + part.shape[0]] = chosen.cpu().numpy()
        return result

    return score


def token_bytes(tokenizer_json: Path, token_id: int) -> int:
    """Return how many UTF-8 bytes of a text a token covers, if it is the first token.

    A byte-level token is spelled with one character per byte. A SentencePiece-style token is spelled as text with marks
    for spaces. A leading mark is not counted if the tokenizer adds a space before a text.

    Args:
        tokenizer_json: path of tokenizer.json.
        token_id: the token's id.

    Raises:
        CalibrationError: no token has the id.
        DamagedFileError, StorageError: the file cannot be read.
    """
    data = tokenizer_document(tokenizer_json.parent)
    sentencepiece = is_sentencepiece_bpe(data)
    for entry in data.get("added_tokens") or ():
        if entry["id"] == token_id:
            return len(str(entry["content"]).encode())
    for token, i in data["model"]["vocab"].items():
        if i == token_id and sentencepiece:
            spelling = token[1:] if token.startswith(SPACE_MARK) and space_prefix(data) else token
            return 1 if is_byte_token(token) else len(spelling.replace(SPACE_MARK, " ").encode())
        if i == token_id:
            return len(token)
    raise CalibrationError(
        f"{tokenizer_json}: no token has id {token_id}", "use the tokenizer that belongs to this model"
    )


def open_checkpoint(
    directory: Path, *, window: int | None = None, device: str = "auto", dtype: str = "auto"
) -> TextScorer:
    """Open a Hugging Face checkpoint directory with Transformers.

    Args:
        directory: the checkpoint.
        window: maximum positions per window, 2048 by default. Limited to the positions of the model.
        device: see `compact.base.devices.resolve_device`.
        dtype: see `compact.base.devices.resolve_dtype`.
    """
    from compact.base.devices import resolve_device, resolve_dtype
    from compact.forward.load import load_model
    from compact.vocabulary.tokenizer import bos_id, encode, load_tokenizer

    resolved = resolve_device(device)
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, device=resolved, dtype=resolve_dtype(dtype, resolved))
    positions = int(getattr(model.config, "max_position_embeddings", DEFAULT_WINDOW))
    return TextScorer(
        lambda text: encode(tokenizer, [text], add_special_tokens=False)[0],
        hf_score(model),
        bos_id(tokenizer),
        min(window or DEFAULT_WINDOW, positions),
    )


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
    """Compute bits per byte of a Hugging Face checkpoint directory on a text.

    See `open_checkpoint` and `evaluate` for arguments and errors.
    """
    model = open_checkpoint(directory, window=window, device=device, dtype=dtype)
    ids = model.encode(text)
    return evaluate(
        ids,
        text,
        model.score,
        bos=model.bos,
        first_token_bytes=token_bytes(directory / TOKENIZER, ids[0]) if ids else 0,
        window=model.window,
        stride=stride,
        progress=progress,
        label=label,
    )
