"""Held-out texts, tokenized once, to measure bits per byte of several models with the same tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compact.base.files import write_json
from compact.base.progress import SILENT, Progress
from compact.calibration.calibration_set import HeldOut
from compact.checkpoints.names import CONFIG, TOKENIZER
from compact.forward.evaluate import Evaluation, evaluate, hf_score, token_bytes
from compact.sources.model_source import ModelSource
from compact.vocabulary.tokenizer import bos_id, encode, load_tokenizer, remap_config, write_pruned_tokenizer

# A text with fewer characters has only a few tokens and is not informative.
_SHORTEST = 16


def named_texts(held_out: Sequence[HeldOut], n_bytes: int | None = None) -> dict[str, str]:
    """Return name -> the first `n_bytes` of the text, or the whole text if `n_bytes` is None.

    Texts with the same name are numbered. Texts with fewer than 16 characters are left out.
    """
    texts: dict[str, str] = {}
    for part in held_out:
        text = part.text.encode("utf-8", "surrogatepass")[:n_bytes].decode("utf-8", "ignore")
        if len(text.strip()) < _SHORTEST:
            continue
        name, number = part.name, 1
        while name in texts:
            number += 1
            name = f"{part.name} ({number})"
        texts[name] = text
    return texts


class TokenizedTexts:
    """Tokenized texts. Scoring them does not need the tokenizer's files any more."""

    def __init__(self, texts: Mapping[str, str], tokenizer_dir: Path, *, window: int) -> None:
        """Tokenize the texts.

        Args:
            texts: name -> text.
            tokenizer_dir: the checkpoint with the tokenizer.
            window: positions per window (see `compact.forward.evaluate.evaluate`).
        """
        tokenizer = load_tokenizer(tokenizer_dir)
        self._bos, self._window = bos_id(tokenizer), window
        ids = encode(tokenizer, list(texts.values()), add_special_tokens=False)
        self._tokenized = {
            name: (text, row, token_bytes(tokenizer_dir / TOKENIZER, row[0]) if row else 0)
            for (name, text), row in zip(texts.items(), ids, strict=True)
        }

    def evaluate(self, model: Any, *, progress: Progress = SILENT, label: str = "evaluating") -> dict[str, Evaluation]:
        """Score every text with a Transformers model. Raises CalibrationError for a text with fewer than two tokens."""
        score = hf_score(model)
        return {
            name: evaluate(
                ids,
                text,
                score,
                bos=self._bos,
                first_token_bytes=first,
                window=self._window,
                progress=progress,
                label=label,
            )
            for name, (text, ids, first) in self._tokenized.items()
        }


def write_tokenizer(source: ModelSource, target: Path, kept: Sequence[int]) -> None:
    """Write the files of a pruned model that `load_tokenizer` reads: those of the tokenizer, and config.json.

    Args:
        source: the unpruned model.
        target: an empty directory.
        kept: `kept_token_ids` of the plan.
    """
    new_id = {old: new for new, old in enumerate(kept)}
    write_json(target / CONFIG, {**remap_config(source.config, new_id, CONFIG), "vocab_size": len(kept)})
    write_pruned_tokenizer(source.directory, target, kept)
