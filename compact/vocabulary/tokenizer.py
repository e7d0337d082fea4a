"""Find the ids and tokens that a tokenizer's files name, and write the files for a pruned vocabulary.

The tokenizer is the one that Transformers gives (`compact.vocabulary.loading`). Where tokenizer.json agrees with it,
its normalizer, pre-tokenizer, decoder and `ignore_merges` stay unchanged. Ids are remapped in all files that contain
them. A SentencePiece `tokenizer.model` is pruned too. Other files that repeat the vocabulary (`vocab.json`,
`merges.txt`) are left out, because tools that prefer them would read outdated ids.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError
from compact.base.files import read_json, read_json_object, write_json
from compact.checkpoints.names import (
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    NAMED_TEMPLATES,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_MODEL,
)
from compact.vocabulary.loading import load_tokenizer as load_tokenizer
from compact.vocabulary.loading import tokenizer_document, truncation_side
from compact.vocabulary.sentencepiece_bpe import is_sentencepiece_bpe
from compact.vocabulary.sentencepiece_model import pruned_model, read_model
from compact.vocabulary.vocabulary import Vocabulary, is_filler

# Keys whose values are ids (or lists of ids, or lists of lists) in config.json and generation_config.json.
_ID_KEYS = frozenset(
    {
        "begin_suppress_tokens",
        "suppress_tokens",
        "bad_words_ids",
        "force_words_ids",
        "sequence_bias",
        "forced_decoder_ids",
    }
)


def _is_id_key(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids")) or key in _ID_KEYS


def _ids_in(value: Any) -> Iterator[int]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _ids_in(item)


def referenced_ids(directory: Path) -> set[int]:
    """Return the ids that config.json, generation_config.json, tokenizer.json's sections and tokenizer.model name."""
    found: set[int] = set()
    for file in (CONFIG, GENERATION_CONFIG):
        if (directory / file).is_file():
            for key, value in read_json_object(directory / file).items():
                if _is_id_key(key):
                    found.update(_ids_in(value))
    tokenizer_json = tokenizer_document(directory)
    for _, ids in _template_tokens(tokenizer_json.get("post_processor")):
        found.update(ids)
    if _has_model(directory, tokenizer_json):
        found.update(read_model(directory / TOKENIZER_MODEL).special_ids)
    return found


def _has_model(directory: Path, tokenizer_json: Mapping[str, Any]) -> bool:
    """True if there is a tokenizer.model that belongs to tokenizer.json. Byte-level BPE has none."""
    return is_sentencepiece_bpe(tokenizer_json) and (directory / TOKENIZER_MODEL).is_file()


def _template_tokens(part: Any) -> Iterator[tuple[str, list[int]]]:
    """Yield (token, ids) for every special token that a post-processor inserts."""
    if not isinstance(part, dict):
        return
    for inner in part.get("processors") or ():
        yield from _template_tokens(inner)
    specials = part.get("special_tokens")
    if isinstance(specials, dict):
        for name, entry in specials.items():
            ids = entry.get("ids") if isinstance(entry, dict) else None
            if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
                raise DamagedFileError(f"{TOKENIZER}: the post-processor has no ids for {str(name)[:80]!r}")
            yield str(name), ids
    named = set(specials) if isinstance(specials, dict) else set()
    for key in ("single", "pair"):
        for piece in part[key] if isinstance(part.get(key), list) else ():
            special = piece.get("SpecialToken") if isinstance(piece, dict) else None
            if isinstance(special, dict) and str(special.get("id")) not in named:
                # The tokenizers library would panic when it first encodes a text.
                raise DamagedFileError(f"{TOKENIZER}: the post-processor's {key} names a token that it does not define")
    for key in ("cls", "sep"):
        if (pair := part.get(key)) is not None:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], int):
                raise DamagedFileError(f"{TOKENIZER}: the post-processor's {key} must be a token and its id")
            yield str(pair[0]), [pair[1]]


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings_in(item)


def named_tokens(directory: Path, vocabulary: Vocabulary) -> set[str]:
    """Return the tokens to keep because a file names them.

    These are the special tokens of tokenizer_config.json, and the reserved fillers that a chat template, the
    post-processor or a setting names. If a special token were dropped, a loader would add it again with an id that has
    no embedding row.
    """
    return _special_settings(directory, vocabulary) | _named_fillers(directory, vocabulary)


def _special_settings(directory: Path, vocabulary: Vocabulary) -> set[str]:
    config = read_json_object(directory / TOKENIZER_CONFIG) if (directory / TOKENIZER_CONFIG).is_file() else {}
    values = [value for key, value in config.items() if key.endswith("_token")]
    names = [value.get("content") if isinstance(value, dict) else value for value in values]
    return {n for n in names if isinstance(n, str) and (n in vocabulary.added or n in vocabulary.tokens)}


def _named_fillers(directory: Path, vocabulary: Vocabulary) -> set[str]:
    fillers = [token for token in (*vocabulary.added, *vocabulary.tokens) if is_filler(token)]
    if not fillers:
        return set()
    texts: list[str] = []
    if (directory / TOKENIZER_CONFIG).is_file():
        config = read_json_object(directory / TOKENIZER_CONFIG)
        texts += _strings_in({key: value for key, value in config.items() if key != "added_tokens_decoder"})
    if (directory / SPECIAL_TOKENS_MAP).is_file():
        texts += _strings_in(read_json(directory / SPECIAL_TOKENS_MAP))
    for path in _chat_templates(directory):
        texts.append(path.read_text(encoding="utf-8"))
    texts += [name for name, _ in _template_tokens(read_json_object(directory / TOKENIZER).get("post_processor"))]
    joined = "\0".join(texts)
    return {token for token in fillers if token in joined}


def _chat_templates(directory: Path) -> list[Path]:
    extra = directory / NAMED_TEMPLATES
    return [p for p in (directory / CHAT_TEMPLATE, *sorted(extra.glob("*.jinja"))) if p.is_file()]


def copy_chat_templates(source: Path, target: Path) -> None:
    """Copy all chat templates from one checkpoint directory to another."""
    for template in _chat_templates(source):
        copy = target / template.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(template, copy)


def prune_tokenizer_json(tokenizer_json: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    """Return tokenizer.json for the kept tokens.

    A merge is kept if both parts and the result are kept. The order of the merges does not change.

    Args:
        tokenizer_json: the source's tokenizer.json.
        new_id: old id -> new id of every kept row.
    """
    result = dict(tokenizer_json)
    model = dict(tokenizer_json["model"])
    vocab = {token: new_id[i] for token, i in model["vocab"].items() if i in new_id}
    model["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))

    def stays(merge: Any) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return left in vocab and right in vocab and left + right in vocab

    model["merges"] = [merge for merge in model.get("merges", ()) if stays(merge)]
    result["model"] = model
    added = tokenizer_json.get("added_tokens") or ()
    result["added_tokens"] = sorted(
        ({**entry, "id": new_id[entry["id"]]} for entry in added if entry["id"] in new_id), key=lambda e: int(e["id"])
    )
    result["post_processor"] = _remap_post_processor(tokenizer_json.get("post_processor"), new_id)
    if isinstance(padding := tokenizer_json.get("padding"), dict):
        # A padding id without a row pads with nothing, so the section is left out.
        pad = new_id.get(padding.get("pad_id", -1))
        result["padding"] = None if pad is None else {**padding, "pad_id": pad}
    return result


def _remap_post_processor(part: Any, new_id: Mapping[int, int]) -> Any:
    if not isinstance(part, dict):
        return part
    result = dict(part)
    if isinstance(part.get("processors"), list):
        result["processors"] = [_remap_post_processor(inner, new_id) for inner in part["processors"]]
    if isinstance(part.get("special_tokens"), dict):
        result["special_tokens"] = {
            name: {**entry, "ids": [new_id[i] for i in entry["ids"]]} for name, entry in part["special_tokens"].items()
        }
    for key in ("cls", "sep"):
        if isinstance(part.get(key), list):
            result[key] = [part[key][0], new_id[part[key][1]]]
    return result


def _remap_ids(value: Any, new_id: Mapping[int, int], where: str) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        # Some files use -1 for "none".
        return new_id.get(value, value) if value < 0 else _mapped(value, new_id, where)
    if isinstance(value, list):
        return [_remap_ids(item, new_id, where) for item in value]
    return value


def _mapped(old: int, new_id: Mapping[int, int], where: str) -> int:
    if old not in new_id:
        raise DamagedFileError(f"{where}: no token has id {old}", "correct the id, or remove the key")
    return new_id[old]


def remap_config(config: Mapping[str, Any], new_id: Mapping[int, int], where: str) -> dict[str, Any]:
    """Remap every id in config.json or generation_config.json. Raises DamagedFileError for an id without a row."""
    return {
        key: _remap_ids(value, new_id, f"{where}: {key}") if _is_id_key(key) else value for key, value in config.items()
    }


def write_pruned_tokenizer(source: Path, target: Path, kept: Sequence[int]) -> None:
    """Write the pruned tokenizer's files into `target`.

    Args:
        source: the checkpoint directory.
        target: a directory that `compact.base.files.publish` yielded.
        kept: source rows in ascending order. New id i is row `kept[i]`.
    """
    new_id = {old: new for new, old in enumerate(kept)}
    tokenizer_json = tokenizer_document(source)
    write_json(target / TOKENIZER, prune_tokenizer_json(tokenizer_json, new_id))
    if _has_model(source, tokenizer_json):
        path = source / TOKENIZER_MODEL
        added_tokens = {entry["id"]: entry for entry in tokenizer_json.get("added_tokens") or ()}
        tokens = {i: token for token, i in tokenizer_json["model"]["vocab"].items()}
        tokens |= {i: entry["content"] for i, entry in added_tokens.items()}
        (target / TOKENIZER_MODEL).write_bytes(pruned_model(read_model(path), kept, tokens, added_tokens, str(path)))
    ids = _ids_by_token(tokenizer_json)
    settings = truncation_side(source)
    if (source / TOKENIZER_CONFIG).is_file():
        settings |= _prune_tokenizer_config(read_json_object(source / TOKENIZER_CONFIG), ids, new_id)
    if settings or (source / TOKENIZER_CONFIG).is_file():
        write_json(target / TOKENIZER_CONFIG, settings)
    if (source / SPECIAL_TOKENS_MAP).is_file():
        shutil.copyfile(source / SPECIAL_TOKENS_MAP, target / SPECIAL_TOKENS_MAP)
    if (source / ADDED_TOKENS).is_file():
        added = read_json_object(source / ADDED_TOKENS)
        write_json(target / ADDED_TOKENS, {t: new_id[ids[t]] for t in added if ids.get(t) in new_id})
    copy_chat_templates(source, target)


def _prune_tokenizer_config(
    settings: Mapping[str, Any], ids: Mapping[str, int], new_id: Mapping[int, int]
) -> dict[str, Any]:
    """Return tokenizer_config.json for the kept tokens. `ids` has the id of every token, which a key may not have."""
    config = dict(settings)
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        entries = ((ids.get(_content(entry), -1), entry) for entry in decoder.values())
        kept = {new_id[old]: entry for old, entry in entries if old in new_id}
        config["added_tokens_decoder"] = {str(new): kept[new] for new in sorted(kept)}
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(extra := config.get(key), list):
            config[key] = [entry for entry in extra if ids.get(_content(entry)) in new_id]
    # The removed keys name the source, or files of slow tokenizers that a pruned checkpoint does not have.
    return {name: value for name, value in config.items() if name not in {"vocab_file", "merges_file", "name_or_path"}}


def _content(entry: Any) -> str:
    """Return the text of a token that a file writes as text or as an object."""
    return str(entry.get("content") if isinstance(entry, dict) else entry)


def _ids_by_token(tokenizer_json: Mapping[str, Any]) -> dict[str, int]:
    added = {entry["content"]: entry["id"] for entry in tokenizer_json.get("added_tokens") or ()}
    return {**tokenizer_json["model"]["vocab"], **added}


def encode(tokenizer: Any, texts: Iterable[str], *, add_special_tokens: bool) -> list[list[int]]:
    """Return the ids of each text. As in Transformers, the text of a special token is encoded as that token."""
    batch = tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)
    ids: list[list[int]] = batch["input_ids"]
    return ids


def bos_id(tokenizer: Any) -> int | None:
    """Return the BOS id if the tokenizer adds BOS to a text, otherwise None."""
    with_specials: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    without: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    if len(with_specials) > len(without) and with_specials[0] == tokenizer.bos_token_id:
        return with_specials[0]
    return None
