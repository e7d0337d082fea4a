"""Choose the tokens to keep: the always-kept ones, and a ranking of the rest.

COMPACT (arXiv 2509.06836, section on vocabulary pruning): BPE learns its merges from most to least frequent, so the
tokens learned last are the rarest. A ranking lists the droppable tokens, most worth keeping first. Every prefix of a
ranking is closed under merges: a token comes after the tokens that it is merged from. The pruned tokenizer can
therefore still reach every kept token.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compact.base.errors import BudgetError, DamagedFileError, DataError, UnsupportedTokenizerError
from compact.vocabulary.sentencepiece_bpe import BYTE_TOKENS, SPACE_MARK, is_sentencepiece_bpe

# Fillers pad a vocabulary to a round number. They are listed as added tokens, but no text uses them.
_FILLER = re.compile(r"(<unused\d+>|<\|reserved_special_token_\d+\|>|\[PAD\d+\]|<\|reserved_\d+\|>|\[control_\d+\])\Z")


_SUPPORTED = "supported: byte-level BPE, and SentencePiece-style BPE with byte fallback"
_DAMAGED = "use the tokenizer.json that belongs to these weights"


def byte_alphabet() -> dict[int, str]:
    """Return byte value -> the printable character that represents it in byte-level BPE (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return table


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a BPE tokenizer, read from tokenizer.json.

    Attributes:
        tokens: token string -> id, of the BPE model.
        merges: pairs of token strings, most frequent first.
        added: added token string -> id.
        specials: the added tokens that are marked special.
        n_rows: rows of the embedding (`vocab_size` of config.json). There may be fewer tokens than rows.
        unknown: the unknown token (`unk_token` of the model), or None.
        sentencepiece: True for SentencePiece-style BPE, which merges characters and byte tokens. False for byte-level
            BPE, which merges 256 letters that represent bytes.
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
        """The tokens that merging starts from. Removing one would make some texts impossible to encode."""
        if not self.sentencepiece:
            return frozenset(byte_alphabet().values()) & self.tokens.keys()
        characters = {token for token in self.tokens if len(token) == 1}
        return frozenset(characters.union(BYTE_TOKENS) & self.tokens.keys())

    @cached_property
    def texts(self) -> dict[str, str | None]:
        """Token of the BPE model -> its text, or None if its bytes are not whole characters."""
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
        """Token -> the last pair merged when BPE encodes the token itself. Unreachable tokens are absent."""
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
    """Run BPE on one token. Return the last pair merged, or None if BPE does not produce the token."""
    parts = list(token)
    no_merge = len(ranks)
    while len(parts) > 1:
        best, at = no_merge, 0
        left = parts[0]
        for n, right in enumerate(parts[1:]):  # plain loops for speed: a large vocabulary calls this 300,000 times
            rank = ranks.get((left, right), no_merge)
            if rank < best:
                best, at = rank, n
            left = right
        if best == no_merge:
            return None
        if len(parts) == 2:
            return parts[0], parts[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return None


def read_vocabulary(tokenizer_json: Mapping[str, Any], n_rows: int, where: str) -> Vocabulary:
    """Check a parsed tokenizer.json and return its vocabulary.

    Args:
        tokenizer_json: the parsed file.
        n_rows: rows of the embedding.
        where: the file's path, for messages.

    Raises:
        UnsupportedTokenizerError: the model is neither byte-level nor SentencePiece-style BPE.
        DamagedFileError: an id is repeated or outside the embedding, or a merge names an unknown token.
    """
    model = tokenizer_json.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedTokenizerError(f"{where}: tokenizer type {kind!r} is not supported", _SUPPORTED)
    sentencepiece = is_sentencepiece_bpe(tokenizer_json)
    if sentencepiece == _is_byte_level(tokenizer_json):
        both = "both byte-level steps and" if sentencepiece else "neither byte-level steps nor"
        raise UnsupportedTokenizerError(f"{where}: the BPE tokenizer has {both} byte fallback", _SUPPORTED)
    tokens = model.get("vocab")
    if not isinstance(tokens, dict) or not all(isinstance(i, int) and 0 <= i < n_rows for i in tokens.values()):
        raise DamagedFileError(f"{where}: vocab has a token id outside the {n_rows} rows of the embedding", _DAMAGED)
    listed = model.get("merges")
    if not isinstance(listed, list):
        raise DamagedFileError(f"{where}: merges is missing or not a list", _DAMAGED)
    merges = [_pair(merge, where) for merge in listed]
    for left, right in merges:
        if left not in tokens or right not in tokens or left + right not in tokens:
            raise DamagedFileError(
                f"{where}: merge {left!r} + {right!r} names a token that is not in the vocabulary", _DAMAGED
            )
    added: dict[str, int] = {}
    specials = set()
    entries = tokenizer_json.get("added_tokens") or []
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("content"), str) for e in entries
    ):
        raise DamagedFileError(f"{where}: added_tokens must be a list of objects with a content", _DAMAGED)
    for entry in entries:
        content, token_id = entry["content"], entry.get("id")
        if not isinstance(token_id, int) or not 0 <= token_id < n_rows:
            raise DamagedFileError(
                f"{where}: added token {content!r} has id {token_id!r}, which is outside the embedding", _DAMAGED
            )
        if added.setdefault(content, token_id) != token_id or tokens.get(content, token_id) != token_id:
            raise DamagedFileError(f"{where}: added token {content!r} has two ids", _DAMAGED)
        if entry.get("special"):
            specials.add(content)
    ids = [*tokens.values(), *(i for token, i in added.items() if token not in tokens)]
    if len(set(ids)) != len(ids):
        raise DamagedFileError(f"{where}: two tokens share an id", _DAMAGED)
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
        raise DamagedFileError(f"{where}: merge {merge!r} is not a pair of tokens", _DAMAGED)
    return parts[0], parts[1]


def is_filler(token: str) -> bool:
    """Return whether the token is a reserved filler (`<unusedN>`, `[PADn]`, `<|reserved_special_token_N|>`)."""
    return _FILLER.match(token) is not None


def always_kept(
    vocabulary: Vocabulary,
    named: Iterable[str],
    referenced_ids: Iterable[int],
    *,
    characters: Callable[[str], object] | None = None,
) -> frozenset[int]:
    """Return the ids that are kept at every vocabulary size.

    These are:
        - byte tokens,
        - in SentencePiece-style BPE, single characters and the unknown token,
        - added tokens, except reserved fillers that nothing names,
        - ids that a configuration names,
        - the tokens in `named`, and all tokens that they are merged from.

    Args:
        vocabulary: the vocabulary to choose from.
        named: token strings that the user or a template names, spelled as in tokenizer.json.
        referenced_ids: ids in config.json and generation_config.json. Negative ids mean "none".
        characters: returns a true value for a single character to keep. SentencePiece-style BPE only, where byte
            tokens can spell the others. None keeps all single characters.

    Raises:
        DataError: `named` has a token that is not in the vocabulary.
        DamagedFileError: a referenced id has no row.
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
                f"a configuration or the post-processor names token id {i}, but there are {vocabulary.n_rows} rows",
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
    """Return the token and all tokens that it is merged from, parts first.

    Tokens in `done` and their parts are left out.
    """
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
    """Return the ids of `order`, with each token's parts moved before it. Always-kept ids are left out."""
    result: list[int] = []
    # An always-kept token does not imply that its parts are kept (an added token needs none). So `done` does not start
    # from `kept`; it collects only the tokens seen in this loop.
    done: set[str] = set()
    for token in order:
        # The caller appends fillers at the end. Here they appear only as parts of other tokens.
        if token in done or vocabulary.tokens[token] in kept or is_filler(token):
            continue
        for part in _closure(vocabulary, token, done):
            done.add(part)
            if vocabulary.tokens[part] not in kept:
                result.append(vocabulary.tokens[part])
    return result


def rank_by_merges(vocabulary: Vocabulary, kept: frozenset[int], tiers: Mapping[str, int] | None = None) -> list[int]:
    """Rank droppable ids by the first merge that makes them, earliest first. Tokens without a merge come last, by id.

    Args:
        vocabulary: the vocabulary to rank.
        kept: ids that are always kept.
        tiers: see `rank_by_use`.
    """
    return rank_by_use(vocabulary, kept, {}, tiers)


def rank_by_use(
    vocabulary: Vocabulary, kept: frozenset[int], use: Mapping[int, float], tiers: Mapping[str, int] | None = None
) -> list[int]:
    """Rank droppable ids by how often text uses them, then by merge order. The ranking is closed under merges.

    Tokens that the text never uses are ranked by merge order, so the ranking contains every droppable id.

    Args:
        vocabulary: the vocabulary to rank.
        kept: ids that are always kept.
        use: id -> occurrences, or share of a text's tokens.
        tiers: token -> tier. Higher tiers come first. A lower-tier token comes earlier only if a higher-tier token is
            merged from it.
    """
    last = len(vocabulary.merges)

    def key(token: str) -> tuple[int, float, int, int]:
        token_id = vocabulary.tokens[token]
        tier = 0 if tiers is None else -tiers[token]
        return tier, -use.get(token_id, 0), vocabulary.first_merge.get(token, last), token_id

    return _with_fillers(vocabulary, kept, _closed_order(vocabulary, sorted(vocabulary.tokens, key=key), kept))


def with_floor(order: Sequence[int], base: Sequence[int], floor: int | None) -> list[int]:
    """Merge two rankings so that `order`, which follows a corpus, cannot displace the first ids of `base`.

    With a number as `floor`, the first `floor` ids of `base` come first and the rest follows `order`. With None, the
    first n ids of the result contain the first n // 2 of `base`, for every n. Each step adds the next id of `base`
    when n // 2 grows, or the next id of `order` if it does not grow or that id is already included. A larger
    vocabulary therefore keeps everything that a smaller one keeps.

    If both rankings are closed under merges, so is the result: in both, a part comes before its token.

    Args:
        order: droppable ids, most worth keeping first.
        base: the same ids, ranked without the corpus.
        floor: how many ids of `base` come first, or None for half of every prefix.
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
    """Append the ids that are neither kept nor ranked: droppable fillers, which are the least worth keeping."""
    ranked = kept.union(ranking)
    return ranking + sorted(i for i in vocabulary.by_id if i not in ranked)


def count_tokens(sequences: Iterable[Iterable[int]]) -> Counter[int]:
    """Count the occurrences of every id."""
    counts: Counter[int] = Counter()
    for sequence in sequences:
        counts.update(sequence)
    return counts


def kept_ids(vocabulary: Vocabulary, kept: frozenset[int], ranking: Sequence[int], vocab_size: int) -> list[int]:
    """Return the source rows of the pruned embedding, ascending. New id i is row `kept_ids[i]` of the source.

    The rows are the always-kept ids and a prefix of the ranking. If the embedding has more rows than tokens, the two
    may be too few; the lowest unused rows then fill up, so that padding still comes after the tokens.

    Raises:
        BudgetError: `vocab_size` is below the number of always-kept ids, or above the number of rows.
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
