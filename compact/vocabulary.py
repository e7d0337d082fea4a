"""Which tokens stay: the always-kept ones, and a ranking of the rest.

COMPACT (arXiv 2509.06836, section on vocabulary pruning): a BPE learns its merges from most to least frequent, so the
last-learned tokens are the rarest. A ranking here lists the droppable tokens from most to least worth keeping, and
every prefix of it is closed: a token comes after the tokens of which it is merged, so a kept token stays reachable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compact.errors import BudgetError, DamagedFileError, DataError, UnsupportedTokenizerError
from compact.sentencepiece_bpe import BYTE_TOKENS, SPACE_MARK, is_sentencepiece_bpe

# Fillers that fill a vocabulary up to a round number; they are listed as added tokens, but no text uses them.
_FILLER = re.compile(r"(<unused\d+>|<\|reserved_special_token_\d+\|>|\[PAD\d+\]|<\|reserved_\d+\|>|\[control_\d+\])\Z")


_SUPPORTED = "supported: byte-level BPE, and SentencePiece-style BPE with byte fallback"


def byte_alphabet() -> dict[int, str]:
    """Byte value -> the printable character that stands for it in byte-level BPE (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return table


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a BPE tokenizer, as tokenizer.json holds them.

    Attributes:
        tokens: token string -> id, of the BPE model.
        merges: pairs of token strings, most frequent first.
        added: added token string -> id.
        specials: the added tokens that are marked special.
        n_rows: rows of the embedding (`vocab_size` of config.json), which may be more than there are tokens.
        unknown: the token for what nothing else spells (`unk_token` of the model), if there is one.
        sentencepiece: SentencePiece-style BPE, which spells a text in characters and byte tokens and merges them;
            byte-level BPE starts from 256 letters that stand for bytes.
    """

    tokens: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: Mapping[str, int]
    specials: frozenset[str]
    n_rows: int
    unknown: str | None = None
    sentencepiece: bool = False

    @cached_property
    def by_id(self) -> dict[int, str]:
        return {i: token for token, i in (*self.tokens.items(), *self.added.items())}

    @cached_property
    def alphabet(self) -> frozenset[str]:
        """The tokens that merging starts from. Without one of them, a text could not be spelled any more."""
        if not self.sentencepiece:
            return frozenset(byte_alphabet().values()) & self.tokens.keys()
        characters = {token for token in self.tokens if len(token) == 1}
        return frozenset(characters.union(BYTE_TOKENS) & self.tokens.keys())

    @cached_property
    def texts(self) -> dict[str, str | None]:
        """Token of the BPE model -> the text that it writes; None for bytes that are only a part of a character."""
        if self.sentencepiece:
            bytes_alone = frozenset(BYTE_TOKENS)
            return {t: None if t in bytes_alone else t.replace(SPACE_MARK, " ") for t in self.tokens}
        value = {character: byte for byte, character in byte_alphabet().items()}
        texts: dict[str, str | None] = {}
        for token in self.tokens:
            try:
                texts[token] = bytes(value[character] for character in token).decode()
            except (KeyError, UnicodeDecodeError):
                texts[token] = None
        return texts

    @cached_property
    def derivations(self) -> dict[str, tuple[str, str]]:
        """Token -> the pair whose merge ends its own encoding; tokens that no merge path reaches are absent."""
        makers: dict[str, list[tuple[str, str]]] = {}
        for pair in self.merges:
            makers.setdefault(pair[0] + pair[1], []).append(pair)
        ranks = {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}
        found: dict[str, tuple[str, str]] = {}
        for token, pairs in makers.items():
            made_by = pairs[0] if len(pairs) == 1 else _last_merge(token, ranks)
            if made_by is not None:
                found[token] = made_by
        return found

    @cached_property
    def first_merge(self) -> dict[str, int]:
        """Token -> rank of the first merge that makes it."""
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(self.merges):
            ranks.setdefault(left + right, rank)
        return ranks


def _last_merge(token: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
    """Run BPE on one token; the last pair merged when the result is the token itself, else None."""
    parts = list(token)
    none = len(ranks)
    while len(parts) > 1:
        best, at = none, 0
        left = parts[0]
        for n, right in enumerate(parts[1:]):  # plain loops: a large vocabulary comes here 300,000 times
            rank = ranks.get((left, right), none)
            if rank < best:
                best, at = rank, n
            left = right
        if best == none:
            return None
        if len(parts) == 2:
            return parts[0], parts[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return None


def read_vocabulary(tokenizer_json: Mapping[str, Any], n_rows: int, where: str) -> Vocabulary:
    """Check a parsed tokenizer.json and take its vocabulary.

    Raises:
        UnsupportedTokenizerError: the model is neither byte-level nor SentencePiece-style BPE.
        DamagedFileError: ids that repeat or lie outside the embedding, merges of unknown tokens.
    """
    model = tokenizer_json.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedTokenizerError(f"{where}: tokenizer of kind {kind!r}", _SUPPORTED)
    sentencepiece = is_sentencepiece_bpe(tokenizer_json)
    if sentencepiece == _is_byte_level(tokenizer_json):
        both = "both byte-level and with" if sentencepiece else "neither byte-level nor with"
        raise UnsupportedTokenizerError(f"{where}: a BPE tokenizer {both} byte fallback", _SUPPORTED)
    tokens = model.get("vocab")
    if not isinstance(tokens, dict) or not all(isinstance(i, int) and 0 <= i < n_rows for i in tokens.values()):
        raise DamagedFileError(f"{where}: token ids outside the {n_rows} embedding rows")
    listed = model.get("merges")
    if not isinstance(listed, list):
        raise DamagedFileError(f"{where}: no list of merges")
    merges = [_pair(merge, where) for merge in listed]
    for left, right in merges:
        if left not in tokens or right not in tokens or left + right not in tokens:
            raise DamagedFileError(f"{where}: merge {left!r} + {right!r} names a token that is not in the vocabulary")
    added: dict[str, int] = {}
    specials = set()
    entries = tokenizer_json.get("added_tokens") or []
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("content"), str) for e in entries
    ):
        raise DamagedFileError(f"{where}: added_tokens must be a list of objects with a content")
    for entry in entries:
        content, token_id = entry["content"], entry.get("id")
        if not isinstance(token_id, int) or not 0 <= token_id < n_rows:
            raise DamagedFileError(f"{where}: added token {content!r} has id {token_id!r}, outside the embedding")
        if added.setdefault(content, token_id) != token_id or tokens.get(content, token_id) != token_id:
            raise DamagedFileError(f"{where}: added token {content!r} has two ids")
        if entry.get("special"):
            specials.add(content)
    ids = [*tokens.values(), *(i for token, i in added.items() if token not in tokens)]
    if len(set(ids)) != len(ids):
        raise DamagedFileError(f"{where}: two tokens share an id")
    unknown = model.get("unk_token")
    return Vocabulary(
        tokens, merges, added, frozenset(specials), n_rows, unknown if unknown in tokens else None, sentencepiece
    )


def _is_byte_level(tokenizer_json: Mapping[str, Any]) -> bool:
    def kinds(part: Any) -> set[str]:
        if not isinstance(part, dict):
            return set()
        inner = part.get("pretokenizers") or part.get("decoders")
        inner = inner if isinstance(inner, list) else ()
        return {str(part.get("type"))}.union(*(kinds(item) for item in inner))

    return "ByteLevel" in kinds(tokenizer_json.get("pre_tokenizer")) | kinds(tokenizer_json.get("decoder"))


def _pair(merge: Any, where: str) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) for p in parts):
        raise DamagedFileError(f"{where}: {merge!r} is no merge of two tokens")
    return parts[0], parts[1]


def is_filler(token: str) -> bool:
    """True for reserved fillers (`<unusedN>`, `[PADn]`, `<|reserved_special_token_N|>`)."""
    return _FILLER.match(token) is not None


def always_kept(
    vocabulary: Vocabulary,
    named: Iterable[str],
    referenced_ids: Iterable[int],
    *,
    characters: Callable[[str], object] | None = None,
) -> frozenset[int]:
    """Ids that no budget drops.

    Byte tokens, single characters and the unknown token (the last two in SentencePiece-style BPE), every added token
    but reserved fillers, fillers that a template, a configuration or the user names, ids that a configuration names,
    and the tokens `named` with everything that they are merged of.

    Args:
        vocabulary: the tokenizer's.
        named: token strings (in the tokenizer's own spelling) that the user or a template names.
        referenced_ids: ids in config.json and generation_config.json; negative ones stand for "none" there.
        characters: which single characters stay, where a text with others can be written in byte tokens
            (SentencePiece-style BPE); None keeps all of them.

    Raises:
        DataError: the user names a token that the tokenizer does not have.
        DamagedFileError: a configuration names an id that has no row.
    """
    alphabet: Iterable[str] = vocabulary.alphabet
    if vocabulary.sentencepiece and characters is not None:
        alphabet = (token for token in alphabet if len(token) > 1 or token == SPACE_MARK or characters(token))
    kept = {vocabulary.tokens[token] for token in alphabet}
    kept |= {i for token, i in vocabulary.added.items() if not is_filler(token)}
    if vocabulary.sentencepiece and vocabulary.unknown is not None:
        kept.add(vocabulary.tokens[vocabulary.unknown])
    for i in referenced_ids:
        if i >= vocabulary.n_rows:
            raise DamagedFileError(
                f"a configuration or the post-processor names token id {i}, and there are {vocabulary.n_rows} rows",
                "correct the id, or remove the key",
            )
        if i >= 0:
            kept.add(i)
    for token in named:
        if token in vocabulary.added:
            kept.add(vocabulary.added[token])
        elif token in vocabulary.tokens:
            kept.update(vocabulary.tokens[part] for part in _closure(vocabulary, token))
        else:
            raise DataError(f"token {token!r} is not in the vocabulary", "write tokens as tokenizer.json spells them")
    return frozenset(kept)


def _closure(vocabulary: Vocabulary, token: str, done: Collection[str] = ()) -> list[str]:
    """The token and everything it is merged of, parts first; `done` tokens and their parts are left out."""
    order: list[str] = []
    seen: set[str] = set()
    stack: list[tuple[str, bool]] = [(token, False)]
    while stack:
        part, ready = stack.pop()
        if ready:
            order.append(part)
        elif part not in seen and part not in done:
            seen.add(part)
            stack.append((part, True))
            stack.extend((piece, False) for piece in vocabulary.derivations.get(part, ()))
    return order


def _closed_order(vocabulary: Vocabulary, order: Iterable[str], kept: frozenset[int]) -> list[int]:
    """Ids of `order` with each token's parts pulled in front of it; always-kept ids left out."""
    result: list[int] = []
    # Parts of always-kept tokens need not be kept themselves (an added token needs none), so only those that went
    # through here are done.
    done: set[str] = set()
    for token in order:
        # Fillers come at the very end, unless another token is merged of them.
        if token in done or vocabulary.tokens[token] in kept or is_filler(token):
            continue
        for part in _closure(vocabulary, token, done):
            done.add(part)
            if vocabulary.tokens[part] not in kept:
                result.append(vocabulary.tokens[part])
    return result


def rank_by_merges(vocabulary: Vocabulary, kept: frozenset[int], tiers: Mapping[str, int] | None = None) -> list[int]:
    """Droppable ids by the first merge that makes them, earliest first; tokens without a merge come last, by id.

    Args:
        vocabulary: the tokenizer's.
        kept: ids that no budget drops.
        tiers: as `rank_by_use` takes them.
    """
    return rank_by_use(vocabulary, kept, {}, tiers)


def rank_by_use(
    vocabulary: Vocabulary, kept: frozenset[int], use: Mapping[int, float], tiers: Mapping[str, int] | None = None
) -> list[int]:
    """Droppable ids by how often text uses them, ties by merge order, closed under merges.

    A token that text never uses still has its merge rank, so the ranking is total.

    Args:
        vocabulary: the tokenizer's.
        kept: ids that no budget drops.
        use: id -> occurrences, or share of a text's tokens.
        tiers: token -> tier; a token of a lower tier comes after all of a higher one that are not merged of it.
    """
    last = len(vocabulary.merges)

    def key(token: str) -> tuple[int, float, int, int]:
        token_id = vocabulary.tokens[token]
        tier = 0 if tiers is None else -tiers[token]
        return tier, -use.get(token_id, 0), vocabulary.first_merge.get(token, last), token_id

    return _with_fillers(vocabulary, kept, _closed_order(vocabulary, sorted(vocabulary.tokens, key=key), kept))


def with_floor(order: Sequence[int], base: Sequence[int], floor: int | None) -> list[int]:
    """A ranking whose smaller half, or first part, is another's: what a corpus says of the rest cannot push it out.

    With a share of the droppable tokens for the floor, what a size keeps is always a part of what the next one keeps:
    at each step either the next id of `base` is added or, where that is there already or the floor does not grow, the
    next one of `order`. So one order serves every size. Every prefix is closed under merges where both rankings are: a
    part comes before its token in either.

    Args:
        order: droppable ids, most worth keeping first.
        base: the same ids, as they are ranked without the corpus.
        floor: how many ids of `base` come first; None keeps, of every n ids, the first n // 2 of `base`.
    """
    ranking: dict[int, None] = {}
    merged, wanted = iter(base), iter(order)
    if floor is not None:
        ranking = dict.fromkeys(base[:floor])
        return [*ranking, *(i for i in order if i not in ranking)]
    grown = 0
    for size in range(1, len(order) + 1):
        added = None
        if size // 2 > grown:
            grown += 1
            added = next(merged)
        if added is None or added in ranking:
            added = next(i for i in wanted if i not in ranking)
        ranking[added] = None
    return list(ranking)


def _with_fillers(vocabulary: Vocabulary, kept: frozenset[int], ranking: list[int]) -> list[int]:
    """The ranking, and behind it the fillers that may go: the rarest of all."""
    ranked = kept.union(ranking)
    return ranking + sorted(i for i in vocabulary.by_id if i not in ranked)


def count_tokens(sequences: Iterable[Iterable[int]]) -> Counter[int]:
    """Occurrences of every id."""
    counts: Counter[int] = Counter()
    for sequence in sequences:
        counts.update(sequence)
    return counts


def kept_ids(vocabulary: Vocabulary, kept: frozenset[int], ranking: Sequence[int], vocab_size: int) -> list[int]:
    """Source rows of the pruned embedding, ascending: new id i is row `kept_ids[i]` of the source.

    The always-kept ids, then the ranking's prefix; where that is not enough (an embedding with more rows than tokens),
    unused rows of the source from the lowest on, so that padding keeps its place behind the tokens.

    Raises:
        BudgetError: `vocab_size` is below what must be kept, or above what there is.
    """
    if not len(kept) <= vocab_size <= vocabulary.n_rows:
        raise BudgetError(
            f"--vocab-size {vocab_size}: this model can have {len(kept)} to {vocabulary.n_rows} rows",
            f"{len(kept)} byte, special and named tokens are always kept",
        )
    rows = [*sorted(kept), *ranking][:vocab_size]
    if len(rows) < vocab_size:
        unused = (row for row in range(vocabulary.n_rows) if row not in vocabulary.by_id)
        rows += [row for row, _ in zip(unused, range(vocab_size - len(rows)), strict=False)]
    return sorted(rows)
