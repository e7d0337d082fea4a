"""Which tokens stay: ranked by merges as in the paper, or by a corpus; every prefix of a ranking is usable."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from compact.base.errors import BudgetError, DamagedFileError, DataError, UnsupportedTokenizerError
from compact.vocabulary.tokenizer import prune_tokenizer_json
from compact.vocabulary.vocabulary import (
    always_kept,
    byte_alphabet,
    count_tokens,
    is_filler,
    kept_ids,
    rank_by_merges,
    rank_by_use,
    read_vocabulary,
    with_floor,
)
from tests.checkpoints import SPECIALS, TEXTS, USER_DEFINED, train_tokenizer
from tests.compact.pruned_checkpoints import reachable

DOCUMENT = train_tokenizer(vocab_size=520)
N_TOKENS = len(DOCUMENT["model"]["vocab"]) + 1  # and one added token outside the model's vocabulary
VOCABULARY = read_vocabulary(DOCUMENT, N_TOKENS, "test")
ALWAYS = always_kept(VOCABULARY, (), ())
BEFORE = reachable(DOCUMENT)


def shuffled_ids(document: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer with ids that say nothing about ranks, as SentencePiece-like vocabularies have them."""
    result = copy.deepcopy(document)
    vocab = result["model"]["vocab"]
    order = sorted(vocab, key=lambda token: (vocab[token] * 7919) % 521)
    result["model"]["vocab"] = {token: i for i, token in enumerate(order)}
    for entry in result["added_tokens"]:
        entry["id"] = result["model"]["vocab"].get(entry["content"], len(order))
    return result


def test_bytes_specials_and_added_tokens_are_always_kept() -> None:
    tokens = {VOCABULARY.by_id[i] for i in ALWAYS}
    assert len(ALWAYS) == 256 + 4
    assert {*SPECIALS, USER_DEFINED} <= tokens
    text = Tokenizer.from_str(json.dumps(DOCUMENT))
    assert text.decode([i for i in ALWAYS if VOCABULARY.by_id[i] in set("abc")]) in {"abc", "acb", "bac"}


def test_the_alphabet_is_that_of_the_tokenizers_library() -> None:
    from tokenizers import pre_tokenizers

    assert sorted(byte_alphabet().values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é \n")
    assert pieces[0][0] == "".join(byte_alphabet()[byte] for byte in "é \n".encode())


@pytest.mark.parametrize("document", [DOCUMENT, shuffled_ids(DOCUMENT)], ids=["ids in order", "ids shuffled"])
def test_ranking_by_merges_is_the_papers(document: dict[str, Any]) -> None:
    """Tokens that the tokenizer learned last go first: what stays is what the first merges make."""
    vocabulary = read_vocabulary(document, N_TOKENS, "test")
    always = always_kept(vocabulary, (), ())
    ranking = rank_by_merges(vocabulary, always)
    learned = list(dict.fromkeys("".join(pair) for pair in document["model"]["merges"]))
    assert [vocabulary.by_id[i] for i in ranking] == learned
    assert sorted([*always, *ranking]) == sorted(vocabulary.by_id)


def test_a_token_that_several_merges_make_counts_by_the_first() -> None:
    document = copy.deepcopy(DOCUMENT)
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    late = next(m for m in reversed(merges) if len("".join(m)) >= 4 and "".join(m)[:-1] not in vocab)
    token = "".join(late)
    merges.insert(5, [token[0], token[1:]])
    vocab.setdefault(token[1:], len(vocab))
    document["added_tokens"][-1]["id"] = len(vocab)
    vocabulary = read_vocabulary(document, len(vocab) + 1, "test")
    assert vocabulary.first_merge[token] == 5


def test_frequent_tokens_of_a_corpus_come_first() -> None:
    tokenizer = Tokenizer.from_str(json.dumps(DOCUMENT))
    corpus = [TEXTS[2]] * 3 + [TEXTS[0]]
    counts = count_tokens(tokenizer.encode(text, add_special_tokens=False).ids for text in corpus)
    assert counts == Counter(i for text in corpus for i in tokenizer.encode(text, add_special_tokens=False).ids)
    ranking = rank_by_use(VOCABULARY, ALWAYS, counts)
    assert sorted(ranking) == sorted(rank_by_merges(VOCABULARY, ALWAYS))
    best = max((i for i in counts if i not in ALWAYS), key=lambda i: counts[i])
    before = ranking[: ranking.index(best)]
    assert all(counts[i] == counts[best] or VOCABULARY.by_id[i] in VOCABULARY.by_id[best] for i in before)
    seen = [i for i in ranking if counts[i]]
    needed = max(ranking.index(i) for i in seen) + 1
    unseen_before = [i for i in ranking[:needed] if not counts[i]]
    assert len(unseen_before) < needed / 2, "a token that the corpus never shows stays only as a part of another"
    encoded = [
        len(
            Tokenizer.from_str(json.dumps(pruned(kept_ids(VOCABULARY, ALWAYS, order, 340))))
            .encode(TEXTS[2], add_special_tokens=False)
            .ids
        )
        for order in (ranking, rank_by_merges(VOCABULARY, ALWAYS))
    ]
    assert encoded[0] < encoded[1], "the corpus ranking serves its corpus better"


def pruned(kept: list[int]) -> dict[str, Any]:
    return prune_tokenizer_json(DOCUMENT, {old: new for new, old in enumerate(kept)})


@settings(max_examples=60)
@given(
    counts=st.dictionaries(st.integers(0, N_TOKENS - 1), st.integers(1, 1000), max_size=80),
    size=st.integers(len(ALWAYS), N_TOKENS),
)
def test_every_prefix_of_a_ranking_is_closed(counts: dict[int, int], size: int) -> None:
    for ranking in (rank_by_use(VOCABULARY, ALWAYS, counts), rank_by_merges(VOCABULARY, ALWAYS)):
        kept = kept_ids(VOCABULARY, ALWAYS, ranking, size)
        assert len(kept) == size
        assert kept == sorted(set(kept))
        assert set(kept) >= ALWAYS
        result = pruned(kept)
        assert sorted([*result["model"]["vocab"].values(), result["added_tokens"][-1]["id"]]) == list(range(size))
        assert reachable(result) == BEFORE & result["model"]["vocab"].keys()


@settings(max_examples=40)
@given(named=st.sets(st.sampled_from(sorted(VOCABULARY.tokens)), max_size=6))
def test_named_tokens_stay_usable_at_the_smallest_size(named: set[str]) -> None:
    always = always_kept(VOCABULARY, named, ())
    kept = kept_ids(VOCABULARY, always, rank_by_merges(VOCABULARY, always), len(always))
    assert named & BEFORE <= reachable(pruned(kept))


def test_a_named_token_that_is_not_there() -> None:
    with pytest.raises(DataError, match="'no such token' is not in the vocabulary"):
        always_kept(VOCABULARY, ["no such token"], ())


def test_ids_that_a_configuration_names() -> None:
    some = next(i for i in range(N_TOKENS) if i not in ALWAYS)
    assert some in always_kept(VOCABULARY, (), [some, -1])
    with pytest.raises(DamagedFileError, match=f"id {N_TOKENS}, but there are {N_TOKENS} rows"):
        always_kept(VOCABULARY, (), [N_TOKENS])


@pytest.mark.parametrize("size", [0, len(ALWAYS) - 1, N_TOKENS + 1])
def test_a_size_out_of_reach_names_both_limits(size: int) -> None:
    with pytest.raises(BudgetError, match=f"--vocab-size {size}: this model can have {len(ALWAYS)} to {N_TOKENS} rows"):
        kept_ids(VOCABULARY, ALWAYS, rank_by_merges(VOCABULARY, ALWAYS), size)


def test_rows_without_a_token_go_first() -> None:
    """Qwen's embedding has more rows than the tokenizer has tokens."""
    padded = read_vocabulary(DOCUMENT, N_TOKENS + 40, "test")
    ranking = rank_by_merges(padded, ALWAYS)
    assert kept_ids(padded, ALWAYS, ranking, N_TOKENS) == list(range(N_TOKENS))
    assert kept_ids(padded, ALWAYS, ranking, N_TOKENS + 8) == list(range(N_TOKENS + 8))


@pytest.mark.parametrize(
    ("token", "filler"),
    [
        ("<unused7>", True),
        ("<|reserved_special_token_12|>", True),
        ("[PAD151700]", True),
        ("<|im_end|>", False),
        ("[PAD]", False),
        ("<pad>", False),
        ("x<unused7>", False),
        ("<unused7>x", False),
    ],
)
def test_fillers(token: str, filler: bool) -> None:
    assert is_filler(token) is filler


def edit(**changes: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    document["model"].update(changes.pop("model", {}))
    return {**document, **changes}


BROKEN: dict[str, tuple[dict[str, Any], type[DataError]]] = {
    "no model": (edit() | {"model": None}, UnsupportedTokenizerError),
    "unigram": (edit(model={"type": "Unigram"}), UnsupportedTokenizerError),
    "word piece": (edit(model={"type": "WordPiece"}), UnsupportedTokenizerError),
    "byte fallback": (edit(model={"byte_fallback": True}), UnsupportedTokenizerError),
    "not byte level": (edit(pre_tokenizer=None, decoder=None), UnsupportedTokenizerError),
    "odd pre-tokenizer": (edit(pre_tokenizer={"pretokenizers": 7}, decoder=[1]), UnsupportedTokenizerError),
    "an id outside the embedding": (
        edit(model={"vocab": {**DOCUMENT["model"]["vocab"], "x1": N_TOKENS}}),
        DamagedFileError,
    ),
    "a negative id": (edit(model={"vocab": {**DOCUMENT["model"]["vocab"], "x1": -1}}), DamagedFileError),
    "an id that is text": (edit(model={"vocab": {**DOCUMENT["model"]["vocab"], "x1": "7"}}), DamagedFileError),
    "two tokens share an id": (edit(model={"vocab": {**DOCUMENT["model"]["vocab"], "x1": 7}}), DamagedFileError),
    "the vocabulary is a list": (edit(model={"vocab": [["a", 0]]}), DamagedFileError),
    "a merge of an unknown token": (edit(model={"merges": [["a", "zzzz"]]}), DamagedFileError),
    "a merge into an unknown token": (edit(model={"merges": [["{", "{"]]}), DamagedFileError),
    "a merge of three": (edit(model={"merges": [["a", "b", "c"]]}), DamagedFileError),
    "a merge of one": (edit(model={"merges": ["ab"]}), DamagedFileError),
    "a merge of numbers": (edit(model={"merges": [[1, 2]]}), DamagedFileError),
    "no merges": (edit(model={"merges": None}), DamagedFileError),
    "an added token without id": (edit(added_tokens=[{"content": "a"}]), DamagedFileError),
    "an added token without content": (edit(added_tokens=[{"id": 1}]), DamagedFileError),
    "an added token that is a number": (edit(added_tokens=[7]), DamagedFileError),
    "added tokens are an object": (edit(added_tokens={"a": 1}), DamagedFileError),
    "an added token beyond the embedding": (edit(added_tokens=[{"id": N_TOKENS, "content": "a"}]), DamagedFileError),
    "an added token with two ids": (
        edit(added_tokens=[{"id": N_TOKENS - 1, "content": SPECIALS[0]}]),
        DamagedFileError,
    ),
    "an added token shares an id": (edit(added_tokens=[{"id": 7, "content": "<new>"}]), DamagedFileError),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_vocabulary_is_refused(case: str) -> None:
    document, expected = BROKEN[case]
    with pytest.raises(expected, match="here"):
        read_vocabulary(document, N_TOKENS, "here")


def expected_floor(by_corpus: list[int], by_merges: list[int], size: int, floor: int) -> set[int]:
    """What a vocabulary keeps, by the words of the option: the floor's tokens, and the corpus's from the top."""
    first = by_merges[:floor]
    rest = [i for i in by_corpus if i not in first]
    return ALWAYS | set(first) | set(rest[: size - len(ALWAYS) - len(first)])


@pytest.mark.parametrize("floor", [0, 30, None])
def test_a_floor_stays_whole_and_every_prefix_stays_closed(floor: int | None) -> None:
    by_merges = rank_by_merges(VOCABULARY, ALWAYS)
    strange = {i: 1000 - n for n, i in enumerate(reversed(by_merges)) if n < 60}  # a text of the rarest tokens only
    by_corpus = rank_by_use(VOCABULARY, ALWAYS, strange)
    ranking = with_floor(by_corpus, by_merges, floor)
    assert sorted(ranking) == sorted(by_merges)
    for size in range(len(ALWAYS) + 31, N_TOKENS + 1, 7):
        kept = kept_ids(VOCABULARY, ALWAYS, ranking, size)
        assert set(kept) == expected_floor(
            by_corpus, by_merges, size, (size - len(ALWAYS)) // 2 if floor is None else floor
        )
        assert reachable(pruned(kept)) == BEFORE & pruned(kept)["model"]["vocab"].keys()
    mixed = with_floor(by_corpus, by_merges, None)  # every second token is by merges
    for count in range(0, len(mixed), 9):
        result = pruned(sorted(ALWAYS.union(mixed[:count])))
        assert reachable(result) == BEFORE & result["model"]["vocab"].keys()


@settings(max_examples=100)
@given(data=st.data(), count=st.integers(1, 60))
def test_one_order_holds_the_half_of_every_size(data: st.DataObject, count: int) -> None:
    by_merges = data.draw(st.permutations(range(count)))
    by_corpus = data.draw(st.permutations(range(count)))
    ranking = with_floor(by_corpus, by_merges, None)
    for size in range(count + 1):
        first = set(by_merges[: size // 2])
        rest = [i for i in by_corpus if i not in first]
        assert set(ranking[:size]) == first | set(rest[: size - len(first)])
