"""Held-out texts, tokenized once, to measure bits per byte of several models with the same tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compact.calibration import HeldOut
from compact.checkpoint_names import CONFIG, TOKENIZER
from compact.evaluate import Evaluation, evaluate, hf_score, token_bytes
from compact.progress import SILENT, Progress
from compact.source import ModelSource
from compact.store import write_json
from compact.tokenizer import bos_id, encode, load_tokenizer, remap_config, write_pruned_tokenizer

# Characters below which a text is no more than a few tokens, and says nothing.
_SHORTEST = 16


def named_texts(held_out: Sequence[HeldOut], n_bytes: int | None = None) -> dict[str, str]:
    """The first `n_bytes` (None: all) of each text by its name.

    Sources of one name are numbered; a text of next to no characters is left out.
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
            texts: by name.
            tokenizer_dir: the tokenizer's checkpoint.
            window: positions at most, as `compact.evaluate.evaluate` takes them.
        """
        tokenizer = load_tokenizer(tokenizer_dir)
        self._bos, self._window = bos_id(tokenizer), window
        ids = encode(tokenizer, list(texts.values()), add_special_tokens=False)
        self._tokenized = {
            name: (text, row, token_bytes(tokenizer_dir / TOKENIZER, row[0]) if row else 0)
            for (name, text), row in zip(texts.items(), ids, strict=True)
        }

    def evaluate(self, model: Any, *, progress: Progress = SILENT, label: str = "evaluating") -> dict[str, Evaluation]:
        """Score every text by a model of Transformers. Raises CalibrationError for a text of fewer than two tokens."""
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
    """What `load_tokenizer` reads of a pruned model: the tokenizer's files, and the configuration that names its class.

    Args:
        source: the unpruned model.
        target: an empty directory.
        kept: `kept_token_ids` of the plan.
    """
    new_id = {old: new for new, old in enumerate(kept)}
    write_json(target / CONFIG, {**remap_config(source.config, new_id, CONFIG), "vocab_size": len(kept)})
    write_pruned_tokenizer(source.directory, target, kept)
