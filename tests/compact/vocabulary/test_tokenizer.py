"""The pruned tokenizer's files, through the tokenizers library and Transformers: ids, text, specials and templates."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from compact.sources.model_source import ModelSource
from compact.vocabulary.tokenizer import prune_tokenizer_json
from compact.vocabulary.vocabulary import always_kept, kept_ids, rank_by_merges, rank_by_use, read_vocabulary
from tests.checkpoints import CHAT_TEMPLATE, SPECIALS, TEXTS, train_tokenizer, write_checkpoint
from tests.compact.pruned_checkpoints import around_tokenizer, document, prune_to, raw, reachable

MESSAGES = [{"role": "user", "content": "Wie heißt du? 你好"}, {"role": "assistant", "content": "def f(): pass\n"}]
STALE = ("tokenizer.model", "vocab.json", "merges.txt")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tokenizer") / "m", bos=True)


@pytest.fixture(scope="module")
def qwen2(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("qwen2") / "m"
    specials = {"bos_token_id": 151643, "eos_token_id": 151645}
    return around_tokenizer(data_dir / "tokenizers" / "qwen2", out, "qwen2", padding=64, **specials)


@pytest.fixture(scope="module")
def llama3(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llama3") / "m"
    specials = {"bos_token_id": 128000, "eos_token_id": [128001, 128009]}
    return around_tokenizer(data_dir / "tokenizers" / "llama3", out, "llama", **specials)


@pytest.fixture(
    scope="module",
    params=[
        ("small", 330),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (("qwen2", 40_000), ("llama3", 30_000), ("smollm2", 20_000))
        ),
    ],
    ids=lambda value: value[0],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """(unpruned, pruned, rows of the pruned)."""
    name, size = request.param
    model: Path | ModelSource = request.getfixturevalue(name)
    before = model.directory if isinstance(model, ModelSource) else model
    return before, prune_to(before, tmp_path_factory.mktemp("pruned") / name, vocab_size=size), size


def test_ids_are_dense_and_in_the_old_order(pair: tuple[Path, Path, int]) -> None:
    before, after, size = pair
    old, new = raw(before).get_vocab(), raw(after).get_vocab()
    assert sorted(new.values()) == list(range(size))
    assert document(after, "config.json")["vocab_size"] == size
    order = sorted(new, key=lambda token: new[token])
    assert order == sorted(order, key=lambda token: old[token])


def test_every_kept_token_still_stands_for_itself(pair: tuple[Path, Path, int]) -> None:
    before, after, _ = pair
    kept = document(after)["model"]["vocab"].keys()
    assert reachable(document(after)) == reachable(document(before)) & kept


def test_text_comes_back(pair: tuple[Path, Path, int]) -> None:
    before, after, size = pair
    old, new = raw(before), raw(after)
    for text in (*TEXTS, " ".join(TEXTS)):
        ids = new.encode(text, add_special_tokens=False).ids
        assert max(ids) < size
        if old.decode(old.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text:
            assert new.decode(ids, skip_special_tokens=False) == text


def test_specials_stay_specials(pair: tuple[Path, Path, int]) -> None:
    before, after, size = pair
    old = {e["content"]: e for e in document(before)["added_tokens"]}
    new = {e["content"]: e for e in document(after)["added_tokens"]}
    filler = ("[PAD", "<|reserved_special_token_")
    assert new.keys() == {content for content in old if not content.startswith(filler)}
    tokenizer = raw(after)
    vocab = tokenizer.get_vocab()
    for content, entry in new.items():
        assert {**entry, "id": 0} == {**old[content], "id": 0}
        assert entry["id"] == vocab[content] < size
        assert tokenizer.encode(f"a{content}b", add_special_tokens=False).ids.count(entry["id"]) == 1


def test_configurations_name_the_same_tokens(pair: tuple[Path, Path, int]) -> None:
    before, after, _ = pair
    for file in ("config.json", "generation_config.json"):
        if not (before / file).exists():
            continue
        old, new = document(before, file), document(after, file)
        assert old.keys() == new.keys()
        for key, value in old.items():
            if key.endswith("_token_id") and value is not None:
                many = isinstance(value, list)
                names = [raw(before).id_to_token(i) for i in (value if many else [value])]
                assert [raw(after).id_to_token(i) for i in (new[key] if many else [new[key]])] == names


def test_transformers_gives_the_ids_of_the_tokenizers_library(pair: tuple[Path, Path, int]) -> None:
    _, after, _ = pair
    tokenizer, alone = AutoTokenizer.from_pretrained(after, local_files_only=True), raw(after)
    for text in TEXTS:  # all in NFC, which Transformers' own Qwen2 tokenizer adds
        assert tokenizer(text)["input_ids"] == alone.encode(text).ids
    assert len(tokenizer) == len(alone.get_vocab())


def test_the_chat_template_says_the_same_and_comes_back(pair: tuple[Path, Path, int]) -> None:
    before, after, _ = pair
    old = AutoTokenizer.from_pretrained(before, local_files_only=True)
    new = AutoTokenizer.from_pretrained(after, local_files_only=True)
    assert old.chat_template == new.chat_template
    if not old.chat_template:
        pytest.skip("this tokenizer has no chat template")
    text = new.apply_chat_template(MESSAGES, tokenize=False)
    assert text == old.apply_chat_template(MESSAGES, tokenize=False)
    ids = new(text, add_special_tokens=False)["input_ids"]
    assert new.decode(ids) == text
    names = {t for t in new.get_added_vocab() if t in text}
    assert names
    assert sum(i in set(new.get_added_vocab().values()) for i in ids) == sum(text.count(name) for name in names)


def test_what_is_no_id_is_carried_over(pair: tuple[Path, Path, int]) -> None:
    before, after, _ = pair
    old, new = document(before), document(after)
    for key in ("normalizer", "pre_tokenizer", "decoder", "truncation", "padding"):
        assert old.get(key) == new.get(key)
    for key in old["model"].keys() - {"vocab", "merges"}:
        assert old["model"][key] == new["model"][key]


def test_merges_that_stay_keep_their_order(pair: tuple[Path, Path, int]) -> None:
    before, after, _ = pair
    vocab = document(after)["model"]["vocab"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in document(before)["model"]["merges"])
    expected = [[a, b] for a, b in pairs if a in vocab and b in vocab and a + b in vocab]
    new = document(after)["model"]["merges"]
    assert [merge.split(" ") if isinstance(merge, str) else merge for merge in new] == expected


def test_what_is_put_before_a_text_and_merges_that_are_ignored(pair: tuple[Path, Path, int]) -> None:
    before, after, _ = pair
    old, new = raw(before).encode("a"), raw(after).encode("a")
    assert new.tokens == old.tokens  # BOS where the original has one, and the letter
    llama3 = "<|begin_of_text|>" in old.tokens
    assert document(after)["model"].get("ignore_merges", False) is llama3
    if llama3:
        assert new.ids[0] == document(after, "config.json")["bos_token_id"]
        assert len(document(after, "config.json")["eos_token_id"]) == 2


# Fillers, some of them named in the places where a file can name one.
FILLERS = [f"<|reserved_special_token_{n}|>" for n in range(8)]


def with_fillers(out: Path) -> Path:
    tokenizer = train_tokenizer()
    first = max(*tokenizer["model"]["vocab"].values(), *(e["id"] for e in tokenizer["added_tokens"])) + 1
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    ids = {token: first + n for n, token in enumerate(FILLERS)}
    tokenizer["added_tokens"] += [{"id": i, "content": token, **flags} for token, i in ids.items()]
    template = {"id": FILLERS[0], "ids": [ids[FILLERS[0]]], "tokens": [FILLERS[0]]}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": FILLERS[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {FILLERS[0]: template},
    }
    directory = write_checkpoint(out, tokenizer=tokenizer, eos_token_id=[2, ids[FILLERS[1]]], pad_token_id=-1)
    generation = {"eos_token_id": [2, ids[FILLERS[2]]], "bad_words_ids": [[ids[FILLERS[3]], 5]], "temperature": 0.6}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    config = document(directory, "tokenizer_config.json")
    config["chat_template"] = CHAT_TEMPLATE + FILLERS[4]
    config["mask_token"] = {"__type": "AddedToken", "content": FILLERS[5], **flags}
    config["additional_special_tokens"] = [SPECIALS[1], FILLERS[6]]
    config["added_tokens_decoder"] = {
        str(e["id"]): {"content": e["content"], **flags} for e in tokenizer["added_tokens"]
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    for name in STALE:
        (directory / name).write_text("stale")
    (directory / "added_tokens.json").write_text(json.dumps(ids))
    (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": SPECIALS[2]}))
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_text("{{ 1 }}")
    return directory


def test_fillers_go_unless_a_file_names_them(tmp_path: Path) -> None:
    before = with_fillers(tmp_path / "m")
    after = prune_to(before, tmp_path / "out", vocab_size=300)
    contents = {entry["content"] for entry in document(after)["added_tokens"]}
    assert contents & {*FILLERS} == {*FILLERS[:7]}
    vocab = raw(after).get_vocab()
    assert sorted(vocab.values()) == list(range(300))
    assert raw(after).encode("a").tokens[0] == FILLERS[0]
    assert document(after, "config.json")["eos_token_id"] == [vocab[SPECIALS[2]], vocab[FILLERS[1]]]
    assert document(after, "config.json")["pad_token_id"] == -1
    generation = document(after, "generation_config.json")
    assert generation["eos_token_id"] == [vocab[SPECIALS[2]], vocab[FILLERS[2]]]
    assert generation["temperature"] == 0.6
    assert generation["bad_words_ids"][0][0] == vocab[FILLERS[3]]
    decoder = document(after, "tokenizer_config.json")["added_tokens_decoder"]
    assert {entry["content"]: int(i) for i, entry in decoder.items()} == {c: vocab[c] for c in contents}
    assert document(after, "added_tokens.json") == {c: vocab[c] for c in FILLERS if c in vocab}


def test_a_loader_finds_no_token_without_a_row(tmp_path: Path) -> None:
    after = prune_to(with_fillers(tmp_path / "m"), tmp_path / "out", vocab_size=300)
    tokenizer = AutoTokenizer.from_pretrained(after, local_files_only=True)
    assert len(tokenizer) == 300
    assert max(tokenizer.get_vocab().values()) == 299


def test_files_that_repeat_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    after = prune_to(with_fillers(tmp_path / "m"), tmp_path / "out", vocab_size=300)
    assert not [name for name in STALE if (after / name).exists()]
    assert (after / "additional_chat_templates" / "tools.jinja").read_text() == "{{ 1 }}"
    assert document(after, "special_tokens_map.json") == {"eos_token": SPECIALS[2]}


def test_a_special_token_setting_keeps_its_token(tmp_path: Path) -> None:
    """tokenizer_config.json may name a token that is no added one; a loader would add it behind the last row."""
    before = write_checkpoint(tmp_path / "m")
    vocab = document(before)["model"]["vocab"]
    last = max(vocab, key=lambda token: vocab[token])
    config = document(before, "tokenizer_config.json")
    (before / "tokenizer_config.json").write_text(json.dumps({**config, "unk_token": last}))
    after = prune_to(before, tmp_path / "out", vocab_size=300)
    assert len(AutoTokenizer.from_pretrained(after, local_files_only=True)) == 300


DOCUMENT = train_tokenizer(vocab_size=520)
N_TOKENS = len(DOCUMENT["model"]["vocab"]) + 1
VOCABULARY = read_vocabulary(DOCUMENT, N_TOKENS, "test")
OLD = Tokenizer.from_str(json.dumps(DOCUMENT))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.text()
    | st.lists(st.sampled_from([*TEXTS, *SPECIALS, "\r\n", "\u0301", "ﬁ", "\U0001f9d1\u200d\U0001f680"])).map("".join),
    named=st.sets(st.sampled_from(sorted(VOCABULARY.tokens)), max_size=8),
    counts=st.none() | st.dictionaries(st.integers(0, N_TOKENS - 1), st.integers(1, 99), max_size=40),
    extra=st.integers(0, 260),
    ignore_merges=st.booleans(),
)
def test_any_text_comes_back_from_any_vocabulary(
    text: str, named: set[str], counts: dict[int, int] | None, extra: int, ignore_merges: bool
) -> None:
    source: dict[str, Any] = copy.deepcopy(DOCUMENT)
    source["model"]["ignore_merges"] = ignore_merges
    always = always_kept(VOCABULARY, named, ())
    ranking = rank_by_merges(VOCABULARY, always) if counts is None else rank_by_use(VOCABULARY, always, counts)
    kept = kept_ids(VOCABULARY, always, ranking, min(len(always) + extra, N_TOKENS))
    new = Tokenizer.from_str(json.dumps(prune_tokenizer_json(source, {old: i for i, old in enumerate(kept)})))
    ids = new.encode(text, add_special_tokens=False).ids
    assert all(0 <= i < len(kept) for i in ids)
    if OLD.decode(OLD.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text:
        assert new.decode(ids, skip_special_tokens=False) == text


def test_nothing_is_dropped_at_the_full_size(small: Path, tmp_path: Path) -> None:
    size = document(small, "config.json")["vocab_size"]
    after = prune_to(small, tmp_path / "out", vocab_size=size)
    assert document(after) == document(small)
