"""Real tokenizers for the tests: as directories, pruned, as vocabulary-only GGUF files, and compared with llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer

from compact.architectures.table import FAMILIES
from compact.vocabulary.tokenizer import named_tokens, referenced_ids, write_pruned_tokenizer
from compact.vocabulary.vocabulary import Vocabulary, always_kept, kept_ids, rank_by_merges, read_vocabulary
from exporters.gguf_writer.tokenizer import add_tokenizer
from exporters.llamacpp.engine import LlamaEngine
from tests.compact.pruned_checkpoints import reachable

SEPARATOR = "\n__ggml_vocab_test__\n"


def write_tokenizer(out: Path, document: Mapping[str, Any], files: Mapping[str, str | bytes] | None = None) -> Path:
    """A directory with tokenizer.json, further files, and the config.json that the exporter asks for."""
    out.mkdir(parents=True)
    (out / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    ids = [*document["model"]["vocab"].values(), *(entry["id"] for entry in document["added_tokens"])]
    (out / "config.json").write_text(json.dumps({"vocab_size": max(ids) + 1}), encoding="utf-8")
    for name, content in (files or {}).items():
        (out / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return out


def write_vocabulary(directory: Path, target: Path) -> Path:
    """A GGUF that holds the tokenizer of a directory and nothing else, named as the directory."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path=None, arch="llama")
    writer.add_name(directory.name)  # by which llama.cpp knows Phi-3
    add_tokenizer(writer, directory, config["vocab_size"], FAMILIES[0], pre=None)
    writer.write_header_to_file(path=target)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return target


@dataclass(frozen=True)
class Source:
    """A tokenizer's directory and what pruning makes of it."""

    directory: Path

    @cached_property
    def document(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.directory / "tokenizer.json").read_text(encoding="utf-8"))
        return value

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.directory / "tokenizer.json"))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        config = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        return read_vocabulary(self.document, config["vocab_size"], str(self.directory))

    @cached_property
    def always(self) -> frozenset[int]:
        names = named_tokens(self.directory, self.vocabulary)
        return always_kept(self.vocabulary, names, referenced_ids(self.directory))

    @cached_property
    def ranking(self) -> list[int]:
        return rank_by_merges(self.vocabulary, self.always)

    @cached_property
    def reachable(self) -> set[str]:
        return reachable(self.document)

    def prune(self, out: Path, vocab_size: int, named: Iterable[str] = ()) -> Source:
        """The tokenizer with `vocab_size` rows (no fewer than must stay), named tokens among them."""
        named = list(named)
        always = self.always if not named else self.always | always_kept(self.vocabulary, named, ())
        ranking = self.ranking if not named else [i for i in self.ranking if i not in always]
        kept = kept_ids(self.vocabulary, always, ranking, max(vocab_size, len(always)))
        out.mkdir(parents=True)
        write_pruned_tokenizer(self.directory, out, kept)
        (out / "config.json").write_text(json.dumps({"vocab_size": len(kept)}), encoding="utf-8")
        return Source(out)

    def ids(self, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
        self.tokenizer.encode_special_tokens = not parse_special
        return [list(encoding.ids) for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def engine(self, scratch: Path) -> LlamaEngine:
        """llama.cpp with the vocabulary of this tokenizer, from a GGUF below `scratch`."""
        path = scratch / f"{self.directory.name}.gguf"
        if not path.is_file():
            write_vocabulary(self.directory, path)
        return LlamaEngine(path, vocab_only=True)


def dense(source: Source) -> bool:
    """Ids 0 to the last, each of one token or of one unused row."""
    ids = {*source.document["model"]["vocab"].values(), *(entry["id"] for entry in source.document["added_tokens"])}
    return ids == set(range(source.vocabulary.n_rows))


def closed(before: Source, after: Source) -> set[str]:
    """Tokens that merging reached before and, though kept, does not reach after."""
    return (before.reachable & after.document["model"]["vocab"].keys()) - reachable(after.document)


def lost_round_trips(before: Source, after: Source, texts: Sequence[str]) -> list[str]:
    """Texts that came back from their ids before pruning and do not after.

    Not counted: texts that name a dropped filler, which is plain text afterwards.
    """
    lost = []
    gone = {entry["content"] for entry in before.document["added_tokens"]}
    gone -= {entry["content"] for entry in after.document["added_tokens"]}
    texts = [text for text in texts if not any(token in text for token in gone)]
    for text, old, new in zip(
        texts, before.ids(texts, parse_special=True), after.ids(texts, parse_special=True), strict=True
    ):
        if before.tokenizer.decode(old, skip_special_tokens=False) == text:
            back = after.tokenizer.decode(new, skip_special_tokens=False)
            if back != text:
                lost.append(text)
    return lost


def different(source: Source, scratch: Path, texts: Sequence[str]) -> dict[bool, list[str]]:
    """Texts on which llama.cpp's ids differ from the tokenizers library's: special tokens read as such, and as text."""
    with source.engine(scratch) as engine:
        return {special: differing(source, engine, texts, special) for special in (True, False)}


def differing(source: Source, engine: LlamaEngine, texts: Sequence[str], special: bool) -> list[str]:
    """Those of `texts` on which an open engine's ids differ."""
    ours = source.ids(texts, parse_special=special)
    theirs = engine.tokenize(texts, parse_special=special)
    return [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]
