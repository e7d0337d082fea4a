"""How often text of a language uses each token: against counts of real text, and what `--languages` refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from compact.base.errors import UsageError
from compact.base.files import read_json_object
from compact.checkpoints.names import TOKENIZER
from compact.pruning.token_use import encoder
from compact.vocabulary.language_use import discounted, merge_order_use, mixed, parse_languages, without_words, word_use
from compact.vocabulary.vocabulary import Vocabulary, rank_by_merges, read_vocabulary

pytest.importorskip("wordfreq", reason="wordfreq is not installed (the extra `languages`)")


class Real:
    """A real tokenizer of the data folder."""

    def __init__(self, directory: Path) -> None:
        document = read_json_object(directory / TOKENIZER)
        rows = max(*document["model"]["vocab"].values(), *(e["id"] for e in document["added_tokens"])) + 1
        self.vocabulary: Vocabulary = read_vocabulary(document, rows, str(directory))
        self.encode = encoder(directory)

    def share(self, use: object, text: str) -> float:
        (ids,) = self.encode([text])
        assert len(ids) == 1, f"{text!r} is not one token"
        return use.get(ids[0], 0.0)  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def qwen(data_dir: Path) -> Real:
    return Real(data_dir / "tokenizers" / "qwen2")


@pytest.mark.slow
@pytest.mark.parametrize("language", ["de", "zh"])
def test_the_words_of_a_language_cover_its_real_prose(qwen: Real, data_dir: Path, language: str) -> None:
    """Of a real text's tokens with letters, the 15,000 most used by the list hold far more than the first merged."""
    (parsed,) = parse_languages((language,))
    use = word_use(qwen.vocabulary, qwen.encode, parsed)
    assert sum(use.values()) == pytest.approx(1.0)
    text = (data_dir / "text" / "languages" / f"{language}.txt").read_text(encoding="utf-8")
    texts, by_id = qwen.vocabulary.texts, qwen.vocabulary.by_id
    counts = Counter(i for ids in qwen.encode([text]) for i in ids)
    words = {i: n for i, n in counts.items() if any(c.isalpha() for c in texts.get(by_id[i]) or "")}

    def covered(best: Iterable[int]) -> float:
        return sum(words.get(i, 0) for i in best) / sum(words.values())

    by_use = covered(i for i, _ in Counter(use).most_common(15_000))
    assert by_use > covered(rank_by_merges(qwen.vocabulary, frozenset())[:15_000]) + 0.05
    assert by_use > 0.7
    if language == "de":
        # German writes nouns with a capital, and the lists of words are in lower case.
        assert qwen.share(use, " Haus") > qwen.share(use, " haus")
        assert qwen.share(use, " und") > 5 * qwen.share(use, " Und")


@pytest.mark.parametrize(
    ("code", "listed", "written", "folded"),
    [("de", "weiss", " weiß", " weiss"), ("de", "wasser", " Wasser", " Waßer"), ("el", "ποσ", " πος", " ποσ")],
)
def test_words_are_counted_as_they_are_written(
    qwen: Real, monkeypatch: pytest.MonkeyPatch, code: str, listed: str, written: str, folded: str
) -> None:
    """The lists are case-folded: the German ß is ss there, and the Greek ς is σ."""
    import wordfreq

    monkeypatch.setattr(wordfreq, "get_frequency_dict", lambda *_: {listed: 1.0})
    (language,) = parse_languages((code,))
    use = word_use(qwen.vocabulary, qwen.encode, language)
    as_written, as_folded = (set(qwen.encode([text])[0]) for text in (written, folded))
    assert min(use.get(i, 0.0) for i in as_written - as_folded) > max(
        (use.get(i, 0.0) for i in as_folded - as_written), default=0.0
    )


def test_codes_that_are_understood() -> None:
    found = {one.code: one for one in parse_languages(("en-GB", "pt-BR", "zh-Hans", "ja", "sr", "th", "code"))}
    assert (found["en-GB"].words, found["pt-BR"].words, found["zh-Hans"].words) == ("en", "pt", "zh")
    assert found["ja"].scripts == {"Hani", "Hira", "Kana"} and not found["ja"].spaced
    # The list for Serbo-Croatian is in Latin letters, and there is none for Thai.
    assert (found["sr"].words, found["sr"].scripts) == (None, {"Cyrl"})
    assert (found["th"].words, found["th"].scripts) == (None, {"Thai"})
    assert found["code"].words is None


@pytest.mark.parametrize(
    ("codes", "message"), [(("english",), "not a language code"), (("xx",), "not a language"), (("de", "de"), "twice")]
)
def test_codes_that_are_refused(codes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_languages(codes)


def test_parts_of_a_use() -> None:
    tokens = {"a": 0, "\u0120b": 1, ",": 2, "\u010a": 3, "\u00c3": 4}
    vocabulary = Vocabulary(tokens, [], {}, frozenset(), 5)
    counts = {0: 5.0, 1: 1.0, 2: 3.0, 3: 1.0, 4: 2.0}
    assert without_words(vocabulary, counts) == {2: 0.75, 3: 0.25}
    # A token that was seen once keeps little; sums are 1 again.
    assert discounted({0: 2, 1: 1}) == pytest.approx({0: 1.2 / 1.4, 1: 0.2 / 1.4})
    assert mixed([(0.5, {0: 1.0}), (0.25, {0: 0.5, 1: 0.5}), (0.25, {})]) == pytest.approx({0: 5 / 6, 1: 1 / 6})
    order = merge_order_use(vocabulary, ["a", ","])
    assert order[0] > order[2] and sum(order.values()) == pytest.approx(1.0)
