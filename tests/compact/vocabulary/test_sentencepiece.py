"""SentencePiece-style BPE: ranked, pruned, and one list of ids from tokenizers, llama.cpp and SentencePiece."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from compact.base.errors import DamagedFileError, UnsupportedTokenizerError
from compact.sources.model_source import open_directory
from compact.vocabulary.pretokenizers import pre_name
from compact.vocabulary.sentencepiece_bpe import check_complete, derived_scores, merges_from_scores, space_prefix
from compact.vocabulary.vocabulary import always_kept, rank_by_merges, rank_by_use, read_vocabulary
from exporters.tokenizer_probe_texts import probe_texts
from tests.checkpoints import TEXTS, write_checkpoint
from tests.compact.pruned_checkpoints import document, prune_to
from tests.sentencepiece_models import (
    BYTES,
    CONTROL,
    EXACT,
    FILLER,
    MARK,
    SPECIALS,
    STYLES,
    USER_DEFINED,
    has_prefix,
    tokenizer_files,
    tokenizer_json,
    trained_model,
)
from tests.vocabularies import Source, closed, dense, different, lost_round_trips, write_tokenizer

STRESS = [*TEXTS, *probe_texts([*SPECIALS, CONTROL, USER_DEFINED])]


def processor(data: bytes) -> Any:
    result = sentencepiece.SentencePieceProcessor()
    result.LoadFromSerializedProto(data)
    return result


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Source]:
    def build(style: str, *, model: bool = True) -> Source:
        return Source(write_tokenizer(tmp_path / "m", tokenizer_json(style), tokenizer_files(style, model=model)))

    return build


@pytest.mark.parametrize(
    ("style", "model"), [*((style, True) for style in EXACT), ("llama 2", False), ("gemma", False)]
)
def test_all_three_give_the_same_ids_before_and_after_pruning(
    make: Callable[..., Source], tmp_path: Path, style: str, model: bool
) -> None:
    source = make(style, model=model)
    smallest = source.prune(tmp_path / "smallest", 0)
    half = source.prune(tmp_path / "half", source.vocabulary.n_rows - 300, ["al", f"{MARK}de"])
    assert half.vocabulary.n_rows > smallest.vocabulary.n_rows + 100
    for current in (source, half, smallest):
        assert different(current, tmp_path, STRESS) == {True: [], False: []}
        path = current.directory / "tokenizer.model"
        assert path.is_file() is model
        if model:
            sp = processor(path.read_bytes())
            plain = [text for text in STRESS if USER_DEFINED not in text]  # that one stands in tokenizer.json alone
            assert [sp.encode(text) for text in plain] == current.ids(plain, parse_special=False)
    for pruned in (half, smallest):
        assert dense(pruned)
        assert closed(source, pruned) == set()
        assert lost_round_trips(source, pruned, STRESS) == []
    kept = half.document["model"]["vocab"]
    assert {"al", f"{MARK}de", *BYTES, *SPECIALS, CONTROL} <= kept.keys()
    assert FILLER not in smallest.document["model"]["vocab"]


@pytest.mark.parametrize("style", ["metaspace first", "metaspace always"])
def test_where_metaspace_and_llama_cpp_put_the_space(make: Callable[..., Source], tmp_path: Path, style: str) -> None:
    """Metaspace leaves out the space before a text that begins with one, and `first` that after a special token."""
    source = make(style)
    for pruned in (source, source.prune(tmp_path / "pruned", 0)):
        found = different(pruned, tmp_path, STRESS)[True]
        tokens = (*SPECIALS, CONTROL, USER_DEFINED)
        assert found
        assert all(text.startswith((" ", MARK)) or any(token in text for token in tokens) for text in found)


def test_ranking_follows_the_scores() -> None:
    """The order in which SentencePiece learned the pieces; ids say something else."""
    source = tokenizer_json("llama 2")
    vocabulary = read_vocabulary(source, len(source["model"]["vocab"]) + 1, "test")
    always = always_kept(vocabulary, (), ())
    ranking = [vocabulary.by_id[i] for i in rank_by_merges(vocabulary, always)]
    sp = processor(trained_model())
    plain = [i for i in range(sp.vocab_size()) if not (sp.is_control(i) or sp.is_byte(i) or sp.is_unknown(i))]
    learned = sorted((i for i in plain if len(sp.id_to_piece(i)) > 1), key=sp.get_score, reverse=True)
    assert ranking == [*(sp.id_to_piece(i) for i in learned), FILLER]
    kept = {vocabulary.by_id[i] for i in always}
    assert kept == {*BYTES, *SPECIALS, CONTROL, USER_DEFINED} | {sp.id_to_piece(i) for i in plain} - set(ranking)


def test_fillers_go_first_whatever_a_corpus_says() -> None:
    source = tokenizer_json("gemma")
    source["added_tokens"] = [e for e in source["added_tokens"] if e["content"] not in (FILLER, USER_DEFINED)]
    vocabulary = read_vocabulary(source, len(source["model"]["vocab"]), "test")
    always = always_kept(vocabulary, (), ())
    filler = vocabulary.tokens[FILLER]
    assert rank_by_merges(vocabulary, always)[-1] == filler
    assert rank_by_use(vocabulary, always, {filler: 1000})[-1] == filler
    assert filler in always_kept(vocabulary, [FILLER], ())


SOURCE = tokenizer_json("llama 2")
VOCABULARY = read_vocabulary(SOURCE, len(SOURCE["model"]["vocab"]) + 1, "test")


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.text() | st.lists(st.sampled_from([*TEXTS, *SPECIALS, "  ", MARK, "<0x41>", "\n\n"])).map("".join),
    named=st.sets(st.sampled_from(sorted(VOCABULARY.tokens)), max_size=8),
    counts=st.none() | st.dictionaries(st.integers(0, VOCABULARY.n_rows - 1), st.integers(1, 99), max_size=40),
    extra=st.integers(0, 500),
)
def test_any_text_comes_back_from_any_vocabulary(
    text: str, named: set[str], counts: dict[int, int] | None, extra: int
) -> None:
    from compact.vocabulary.tokenizer import prune_tokenizer_json
    from compact.vocabulary.vocabulary import kept_ids
    from tests.compact.pruned_checkpoints import reachable

    always = always_kept(VOCABULARY, named, ())
    ranking = rank_by_merges(VOCABULARY, always) if counts is None else rank_by_use(VOCABULARY, always, counts)
    kept = kept_ids(VOCABULARY, always, ranking, min(len(always) + extra, VOCABULARY.n_rows))
    result = prune_tokenizer_json(SOURCE, {old: new for new, old in enumerate(kept)})
    assert named <= result["model"]["vocab"].keys()
    assert reachable(SOURCE) & result["model"]["vocab"].keys() <= reachable(result)
    old, new = Tokenizer.from_str(json.dumps(SOURCE)), Tokenizer.from_str(json.dumps(result))
    ids = new.encode(text, add_special_tokens=False).ids
    assert all(0 <= i < len(kept) for i in ids)
    if old.decode(old.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text:
        assert new.decode(ids, skip_special_tokens=False) == text


def test_a_pruned_checkpoint_loads_and_its_tokenizer_model_is_whole(tmp_path: Path) -> None:
    before = write_checkpoint(tmp_path / "before", tokenizer=tokenizer_json("llama 2"), bos_token_id=1, padding=7)
    for name, content in tokenizer_files("llama 2").items():
        (before / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "tokenizer.model" in open_directory(before, name="m", origin="m").hashes
    after = prune_to(before, tmp_path / "after", vocab_size=800)
    old, new = processor(trained_model()), processor((after / "tokenizer.model").read_bytes())
    vocab = document(after)["model"]["vocab"]
    pieces = [new.id_to_piece(i) for i in range(new.vocab_size())]
    assert vocab == {piece: i for i, piece in enumerate(pieces)}
    assert [new.get_score(i) for i in range(len(pieces))] == [old.get_score(old.piece_to_id(p)) for p in pieces]
    for kind in ("is_control", "is_byte", "is_unknown", "is_unused"):
        assert [getattr(new, kind)(i) for i in range(len(pieces))] == [
            getattr(old, kind)(old.piece_to_id(piece)) for piece in pieces
        ]
    assert (new.unk_id(), new.bos_id(), new.eos_id(), new.pad_id()) == (0, 1, 2, -1)
    tokenizer = AutoTokenizer.from_pretrained(after, local_files_only=True)
    assert tokenizer("Hello").input_ids == [1, *new.encode("Hello")]
    assert len(tokenizer) == len(pieces) + 1  # the user-defined token stands beyond the model


def test_a_piece_that_tokenizer_json_renames_is_renamed(tmp_path: Path) -> None:
    """Fine-tuned models give reserved pieces a new meaning, in tokenizer.json alone."""
    changed = tokenizer_json("llama 2")
    vocab = changed["model"]["vocab"]
    i = vocab.pop(FILLER)
    vocab["<|turn|>"] = i
    entry = next(entry for entry in changed["added_tokens"] if entry["id"] == i)
    entry["content"] = "<|turn|>"
    source = Source(write_tokenizer(tmp_path / "m", changed, tokenizer_files("llama 2")))
    pruned = source.prune(tmp_path / "pruned", 0)
    sp = processor((pruned.directory / "tokenizer.model").read_bytes())
    assert sp.is_control(sp.piece_to_id("<|turn|>"))
    assert sp.piece_to_id("<|turn|>") == pruned.document["model"]["vocab"]["<|turn|>"]
    for current in (source, pruned):
        assert different(current, tmp_path, [*TEXTS, "a <|turn|> b"]) == {True: [], False: []}


def test_another_tokenizers_model_is_refused(tmp_path: Path) -> None:
    changed = tokenizer_json("llama 2")
    vocab = changed["model"]["vocab"]
    vocab["al"], vocab["he"] = vocab["he"], vocab["al"]
    source = Source(write_tokenizer(tmp_path / "m", changed, tokenizer_files("llama 2")))
    with pytest.raises(DamagedFileError, match=r"in tokenizer\.json") as caught:
        source.prune(tmp_path / "pruned", 500)
    assert caught.value.hint is not None and "remove tokenizer.model" in caught.value.hint


@pytest.mark.parametrize("style", STYLES)
def test_every_spelling_of_the_kind_is_known(style: str) -> None:
    assert pre_name(tokenizer_json(style)) == "default"
    assert space_prefix(tokenizer_json(style)) is has_prefix(style)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "lower case": (lambda d: d.update(normalizer={"type": "Lowercase"}), "Lowercase"),
    "splitting metaspace": (
        lambda d: d.update(normalizer=None, pre_tokenizer={"type": "Metaspace", "replacement": MARK, "split": True}),
        "Metaspace",
    ),
    "no spaces replaced": (lambda d: d.update(normalizer=None, pre_tokenizer=None), "no equivalent"),
    "another mark": (
        lambda d: d.update(normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "_"}),
        "no equivalent",
    ),
    "ignore_merges": (lambda d: d["model"].update(ignore_merges=True), "ignore_merges"),
    "a byte without a token": (lambda d: d["model"]["vocab"].pop("<0x7F>"), "<0x7F>"),
    "dropout": (lambda d: d["model"].update(dropout=0.1), "dropout"),
    "byte-level steps": (
        lambda d: d.update(normalizer=None, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False}),
        "ByteLevel",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_do_is_refused(case: str) -> None:
    change, word = REFUSED[case]
    source = tokenizer_json("llama 2")
    change(source)
    with pytest.raises(UnsupportedTokenizerError, match=word):
        pre_name(source)


def _pairs() -> list[tuple[str, str]]:
    return [(left, right) for left, right in tokenizer_json("llama 2")["model"]["merges"]]


def test_merges_come_back_from_scores() -> None:
    """What Transformers' converter makes of the same model, of which it sees the pieces and scores only."""
    pairs = _pairs()
    vocab = tokenizer_json("llama 2")["model"]["vocab"]
    sp = processor(trained_model())
    scores = {token: sp.get_score(sp.piece_to_id(token)) for token in vocab if len(token) > 1}
    plain = {token: score for token, score in scores.items() if token not in (*BYTES, *SPECIALS, CONTROL, FILLER)}
    found = merges_from_scores(plain, vocab)
    assert [left + right for left, right in found] == [left + right for left, right in pairs]
    assert set(found) == set(pairs)
    derived = derived_scores(pairs, "test")
    assert sorted(plain, key=lambda t: -plain[t]) == sorted(plain, key=lambda t: -derived[t])
    assert all(score == int(score) and -(1 << 24) < score <= 0 for score in derived.values())


def test_merges_that_no_scores_express_are_refused() -> None:
    pairs, vocab = _pairs(), tokenizer_json("llama 2")["model"]["vocab"]
    apart = {*BYTES, *SPECIALS, CONTROL, FILLER}
    check_complete(vocab, pairs, apart, "test")
    twice = next(i for i, (a, b) in enumerate(pairs) if "".join(pairs[i + 1]) == a + b)
    with pytest.raises(UnsupportedTokenizerError, match=r"but \d in a SentencePiece model"):
        check_complete(vocab, [*pairs[:twice], *pairs[twice + 1 :]], apart, "test")
    moved = [*pairs[:twice], *pairs[twice + 1 :], pairs[twice]]
    with pytest.raises(UnsupportedTokenizerError, match="other merges come between"):
        derived_scores(moved, "here")


def test_runs_of_white_space_may_share_a_score() -> None:
    """Gemma's runs have one score each; the converter sorts their merges by the lengths of the parts."""
    runs = [(MARK * a, MARK * b) for a in (3, 2, 1) for b in (3, 2, 1) if a + b <= 4]
    tabs = [("\t" * len(a), "\t" * len(b)) for a, b in runs]
    mixed = [pair for both in zip(runs, tabs, strict=True) for pair in both]
    scores = derived_scores([*mixed, ("a", "b")], "test")
    assert {scores[char * n] for char in (MARK, "\t") for n in (3, 4)} == {0.0}
    assert (scores[MARK * 2], scores["\t\t"], scores["ab"]) == (-10.0, -11.0, -12.0)


def test_a_tokenizer_keeps_what_it_had_at_the_full_size(tmp_path: Path) -> None:
    source = Source(write_tokenizer(tmp_path / "m", tokenizer_json("gemma"), tokenizer_files("gemma")))
    whole = source.prune(tmp_path / "whole", source.vocabulary.n_rows)
    expected = copy.deepcopy(source.document)
    expected["added_tokens"].sort(key=lambda entry: entry["id"])
    assert whole.document == expected
    assert (whole.directory / "tokenizer.model").read_bytes() == trained_model(False)
