"""Estimate how often text uses each token of a source's tokenizer. Counts are cached."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from compact.base.cache import Cache
from compact.base.files import sha256_file, sha256_json
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import TOKENIZER
from compact.sources.model_source import ModelSource
from compact.vocabulary.language_use import (
    Encode,
    Language,
    Use,
    discounted,
    lists_version,
    merge_order_use,
    mixed,
    stdlib_counts,
    without_words,
    word_use,
)
from compact.vocabulary.scripts import letter_of, written_in
from compact.vocabulary.tokenizer import load_tokenizer
from compact.vocabulary.vocabulary import Vocabulary

# Weight of merge order in a language without spaces between words. The word list has the remaining weight.
_ACROSS_WORDS_SHARE = 0.3
# Increase this when the same inputs give different shares.
_VERSION = 2


def encoder(directory: Path) -> Encode:
    """Return a function that encodes texts with the checkpoint's tokenizer, without special tokens.

    It calls the tokenizers library directly, which is faster than calling the Transformers tokenizer.
    """
    backend = load_tokenizer(directory).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    return encode


class UsedTokens:
    """The share of each token in several kinds of text, for one tokenizer. Each kind is counted on first use."""

    def __init__(
        self, source: ModelSource, vocabulary: Vocabulary, cache: Cache | None, progress: Progress = SILENT
    ) -> None:
        """Store the arguments without counting anything.

        Args:
            source: the checkpoint with the tokenizer.
            vocabulary: the tokenizer's vocabulary.
            cache: stores the counts. None counts every time.
            progress: receives the counting tasks.
        """
        self._directory, self._vocabulary, self._cache = source.directory, vocabulary, cache
        self._progress = progress

    def words(self, language: Language) -> Use:
        """Estimate the use of tokens by the words of a language.

        If there is no word list, merge order gives the estimate, for the tokens of the language's scripts. If the
        language has no spaces between words, some tokens span several words, and its word list does not contain them.
        Merge order then has a weight of 0.3.
        """
        if language.words is None:
            return self._by_merges(language)
        words = self._kept(
            f"counting the tokens of words in {language.code}",
            {
                "words": language.words,
                "spaced": language.spaced,
                "capital_nouns": language.capital_nouns,
                "lists": lists_version(),
            },
            lambda: {"words": word_use(self._vocabulary, self._encode, language)},
        )["words"]
        if language.spaced:
            return words
        return mixed([(1 - _ACROSS_WORDS_SHARE, words), (_ACROSS_WORDS_SHARE, self._by_merges(language))])

    def _by_merges(self, language: Language) -> Use:
        """Estimate by merge order the use of the tokens that contain a letter of the language's scripts."""
        fullmatch, letter = written_in(language.scripts).fullmatch, letter_of(language.scripts).search
        texts = self._vocabulary.texts
        in_scripts = (token for token, text in texts.items() if text is not None and letter(text) and fullmatch(text))
        return merge_order_use(self._vocabulary, in_scripts)

    @property
    def prose(self) -> Use:
        """Use of tokens in the standard library's prose, with discounted counts."""
        return discounted(self._stdlib["prose"])

    @property
    def code(self) -> Use:
        """Use of tokens in the standard library's source code, with discounted counts."""
        return discounted(self._stdlib["code"])

    @property
    def shared(self) -> Use:
        """Use of the tokens that all languages share: punctuation, digits, white space and markup.

        Prose and code have equal weight.
        """
        return mixed([(1.0, without_words(self._vocabulary, self._stdlib[name])) for name in ("prose", "code")])

    @cached_property
    def _encode(self) -> Encode:
        return encoder(self._directory)

    @cached_property
    def _stdlib(self) -> dict[str, Use]:
        return self._kept(
            "counting the tokens of prose and code",
            {"stdlib": platform.python_version()},
            lambda: stdlib_counts(self._encode),
        )

    def _kept(self, label: str, what: dict[str, object], count: Callable[[], dict[str, Use]]) -> dict[str, Use]:
        def counted() -> dict[str, Use]:
            with self._progress.task(label, 1, "texts") as task:
                found = count()
                task.advance()
            return found

        if self._cache is None:
            return counted()
        key = sha256_json({"version": _VERSION, "tokenizer": sha256_file(self._directory / TOKENIZER), **what})

        def make(work: Path) -> None:
            arrays: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}
            for name, use in counted().items():
                arrays[f"{name}_ids"] = np.array(list(use), dtype=np.float64)
                arrays[f"{name}_use"] = np.array(list(use.values()), dtype=np.float64)
            np.savez(work / "use.npz", allow_pickle=False, **arrays)

        folder = self._cache.get_or_make("token-use", key, make)
        with np.load(folder / "use.npz", allow_pickle=False) as data:
            names = [name.removesuffix("_ids") for name in data.files if name.endswith("_ids")]
            return {
                name: dict(zip(data[f"{name}_ids"].astype(int).tolist(), data[f"{name}_use"].tolist(), strict=True))
                for name in names
            }
