"""Which tokens go first: other scripts, then what the languages use least; and which texts still come back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from compact.base.cache import Cache
from compact.base.errors import BudgetError, UsageError
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.ranking import Ranking, check_ranking, rank_vocabulary
from compact.pruning.sizes import sizes_of
from compact.sources.model_source import ModelSource, open_directory
from compact.vocabulary.vocabulary import kept_ids
from exporters.tokenizer_probe_texts import probe_texts
from tests.checkpoints import TEXTS, write_checkpoint
from tests.sentencepiece_models import MARK, tokenizer_files, tokenizer_json
from tests.vocabularies import Source, closed, differing, lost_round_trips, write_tokenizer

pytest.importorskip("wordfreq", reason="wordfreq is not installed (the extra `languages`)")

ENGLISH = PruneOptions(languages=("en",))
MERGES = PruneOptions(vocab_rank="merges")
# Tokens of real prose after a cut to a quarter, over those before.
MOST_TOKENS = 1.1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A random model with a SentencePiece-style tokenizer of many scripts."""
    root = tmp_path_factory.mktemp("model")
    model = write_checkpoint(
        root / "m", "gemma3_text", tokenizer=tokenizer_json("gemma"), bos_token_id=1, pad_token_id=0
    )
    for name, content in tokenizer_files("gemma").items():
        (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_directory(model, name="m", origin="m")


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """What was counted once serves all tests."""
    return Cache(tmp_path_factory.mktemp("cache"), [], [])


@pytest.fixture(autouse=True)
def few_words(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting all words of a language takes seconds: only the tests of real tokenizers do it."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr("compact.vocabulary.language_use._MOST_WORDS", 10_000)


def tokens_of(ranking: Ranking, vocab_size: int) -> set[str]:
    """The tokens that this size keeps."""
    kept = kept_ids(ranking.vocabulary, ranking.always, ranking.order, vocab_size)
    return {ranking.vocabulary.by_id[i] for i in kept if i in ranking.vocabulary.by_id}


def characters(tokens: set[str], first: str, last: str) -> set[str]:
    return {token for token in tokens if len(token) == 1 and first <= token <= last}


def test_characters_of_other_scripts_go_before_words(source: ModelSource, counted: Cache) -> None:
    """Merge order keeps every character of every script; the default and --languages let them go."""
    size = len(rank_vocabulary(Context(source, MERGES, counted)).always) + 100
    merges, default = (
        tokens_of(rank_vocabulary(Context(source, options, counted)), size) for options in (MERGES, PruneOptions())
    )
    cyrillic = characters(merges, "Ѐ", "ӿ")
    assert cyrillic and not characters(default, "Ѐ", "ӿ")
    words = {token for token in default if token.startswith(MARK) and token[1:].isascii() and token[1:].isalpha()}
    assert len(words) > len({token for token in merges if token in words})
    russian = tokens_of(rank_vocabulary(Context(source, PruneOptions(languages=("ru",)), counted)), size)
    assert len(characters(russian, "Ѐ", "ӿ")) > len(cyrillic) * 0.8


def test_the_scripts_are_those_of_the_calibration(source: ModelSource, counted: Cache, tmp_path: Path) -> None:
    russian = tmp_path / "ru.txt"
    russian.write_text("Поезд к морю отходит в семь часов утра и часто бывает полон. " * 5, encoding="utf-8")
    ranking = rank_vocabulary(Context(source, PruneOptions(calibration=(str(russian),)), counted))
    assert (ranking.name, ranking.scripts) == ("scripts", ("Cyrl", "Latn"))
    assert "п" in tokens_of(ranking, len(ranking.always))
    # What is not there before it is drawn says nothing, and neither does a vocabulary of one script.
    unknown = rank_vocabulary(Context(source, PruneOptions(calibration=("self",)), counted))
    assert (unknown.name, unknown.order) == ("merges", rank_vocabulary(Context(source, MERGES, counted)).order)


def test_an_english_vocabulary_is_ranked_by_merges(tmp_path: Path) -> None:
    """Nothing is to be gained there, and the plan is the paper's."""
    from compact.sources.model_source import open_source

    tiny = open_source("tiny", Cache(tmp_path / "cache", [], []))
    assert rank_vocabulary(Context(tiny, PruneOptions(), Cache(tmp_path / "cache", [], []))) == rank_vocabulary(
        Context(tiny, MERGES, Cache(tmp_path / "cache", [], []))
    )


@pytest.mark.parametrize("languages", [("en",), ("ru", "code"), ("th",)])
def test_every_size_spells_every_text(
    source: ModelSource, counted: Cache, tmp_path: Path, languages: tuple[str, ...]
) -> None:
    """Round trips, merges that still make what they made, and the pieces of SentencePiece itself."""
    ranking = rank_vocabulary(Context(source, PruneOptions(languages=languages), counted))
    before = Source(source.directory)
    texts = [*TEXTS, *probe_texts(["<s>"])]
    for extra in (0, 60, 300):
        after = prune_as(before, tmp_path / str(extra), ranking, len(ranking.always) + extra)
        assert closed(before, after) == set()
        assert lost_round_trips(before, after, texts) == []
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(after.directory / "tokenizer.model"))
        ours = after.tokenizer
        plain = [text for text in TEXTS if MARK not in text]
        assert [pieces.encode(text) for text in plain] == [
            ours.encode(text, add_special_tokens=False).ids for text in plain
        ]


def prune_as(source: Source, out: Path, ranking: Ranking, vocab_size: int) -> Source:
    """The tokenizer's files at a size of a ranking."""
    from compact.vocabulary.tokenizer import write_pruned_tokenizer

    kept = kept_ids(ranking.vocabulary, ranking.always, ranking.order, vocab_size)
    out.mkdir(parents=True)
    write_pruned_tokenizer(source.directory, out, kept)
    (out / "config.json").write_text(json.dumps({"vocab_size": len(kept)}), encoding="utf-8")
    return Source(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "languages"), [("gemma4", ("zh", "en")), ("qwen2", ("de", "code")), ("llama3", ("ja", "en"))]
)
def test_real_tokenizers_give_the_same_ids_in_llamacpp(
    data_dir: Path, tmp_path: Path, name: str, languages: tuple[str, ...]
) -> None:
    """A quarter of a real vocabulary: any text comes back, and llama.cpp cuts it as the tokenizers library does.

    Text in a language that was asked for takes hardly more tokens.
    """
    folder = data_dir / "tokenizers" / name
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = (folder / "tokenizer_config.json").read_bytes()
    before = Source(write_tokenizer(tmp_path / "before", document, {"tokenizer_config.json": config}))
    rows = before.vocabulary.n_rows
    stand_in: Any = SimpleNamespace(directory=before.directory, vocab_size=rows, origin=name, commit=None)
    ranking = rank_vocabulary(Context(stand_in, PruneOptions(languages=languages), Cache(tmp_path / "cache", [], [])))
    after = prune_as(before, tmp_path / "after", ranking, rows // 4)
    for language in set(languages) - {"code"}:
        text = (data_dir / "text" / "languages" / f"{language}.txt").read_text(encoding="utf-8")
        old, new = (len(one.ids([text], parse_special=False)[0]) for one in (before, after))
        assert new / old < MOST_TOKENS, language
    texts = [*TEXTS, *probe_texts([]), *handbook(data_dir)]
    assert closed(before, after) == set()
    assert lost_round_trips(before, after, texts) == []
    with before.engine(tmp_path) as whole, after.engine(tmp_path) as pruned:
        changed = differing(after, pruned, texts, False)
        assert [text for text in changed if text not in differing(before, whole, changed, False)] == []


def handbook(data_dir: Path) -> list[str]:
    """Prose in ten languages."""
    files = sorted((data_dir / "text" / "languages").glob("*.txt"))
    return [file.read_text(encoding="utf-8")[-2000:] for file in files]


def test_coverage_names_the_size(source: ModelSource, counted: Cache) -> None:
    """A text made of the kept tokens alone stays whole; the size is the smallest that reaches the share."""
    ranking = rank_vocabulary(Context(source, ENGLISH, counted))
    asked = replace(ENGLISH, vocab_coverage=0.9)
    size = sizes_of(source, ranking, asked).vocab_size
    assert ranking.use is not None

    def covered(vocab_size: int) -> float:
        kept = kept_ids(ranking.vocabulary, ranking.always, ranking.order, vocab_size)
        return sum(ranking.use.get(i, 0.0) for i in kept)  # type: ignore[union-attr]

    assert covered(size) >= 0.9 > covered(size - 1)
    padded = sizes_of(source, ranking, replace(asked, pad_vocab_to_multiple_of=64)).vocab_size
    assert padded % 64 == 0 and 0 <= padded - size < 64
    assert sizes_of(source, ranking, replace(asked, vocab_coverage=1.0)).vocab_size <= source.vocab_size


def test_a_longer_text_is_foreseen(source: ModelSource, counted: Cache) -> None:
    """Tokens per character that `reach` expects are those of a text of the same use, cut by the pruned tokenizer."""
    text = " ".join(["the train", "and it is often full", "we should buy", "doesn't jump"] * 10)
    whole = Tokenizer.from_file(str(source.directory / "tokenizer.json"))
    ids = whole.encode(text, add_special_tokens=False).ids
    ranking = rank_vocabulary(Context(source, PruneOptions(), counted))
    from compact.vocabulary.coverage import reach_of

    use = {i: ids.count(i) / len(ids) for i in set(ids)}
    reach = reach_of(ranking.vocabulary, ranking.always, ranking.order, use)
    for size in (len(ranking.always), len(ranking.always) + 150, source.vocab_size):
        new = {old: n for n, old in enumerate(kept_ids(ranking.vocabulary, ranking.always, ranking.order, size))}
        from compact.vocabulary.tokenizer import prune_tokenizer_json

        document = json.loads((source.directory / "tokenizer.json").read_text(encoding="utf-8"))
        pruned = Tokenizer.from_str(json.dumps(prune_tokenizer_json(document, new)))
        real = len(pruned.encode(text, add_special_tokens=False).ids) / len(text)
        assert real == pytest.approx(reach.at(size)[1], rel=0.02)


def test_a_corpus_and_languages_share_the_vocabulary(source: ModelSource, counted: Cache, tmp_path: Path) -> None:
    """The corpus brings its own words in, and half of what the languages keep without it stays."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Привет мир " * 30, encoding="utf-8")
    alone = rank_vocabulary(Context(source, ENGLISH, counted))
    both = rank_vocabulary(Context(source, replace(ENGLISH, vocab_corpus=corpus), counted))
    assert (both.name, both.languages) == ("corpus", ("en",))
    droppable = 200
    size = len(alone.always) + droppable
    before, after = tokens_of(alone, size), tokens_of(both, size)
    assert set(alone.order[: droppable // 2]) <= set(both.order[:droppable])
    assert len(characters(after, "Ѐ", "ӿ")) > len(characters(before, "Ѐ", "ӿ"))
    assert both.floor_at(size) == droppable // 2


REFUSED: Sequence[tuple[PruneOptions, type[Exception], str]] = (
    (replace(ENGLISH, vocab_rank="merges"), UsageError, "--vocab-rank merges exclude"),
    (PruneOptions(vocab_coverage=0.9), UsageError, "--vocab-coverage: needs --languages or --vocab-corpus"),
    (replace(ENGLISH, vocab_coverage=1.5), BudgetError, "--vocab-coverage: out of range"),
    (PruneOptions(vocab_floor=3), UsageError, "--vocab-floor 3: only valid with --vocab-corpus"),
)


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_options_that_exclude_each_other(options: PruneOptions, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_ranking(options)
