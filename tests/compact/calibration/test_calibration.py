"""The calibration set: what is read, drawn and refused."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from compact.base.errors import CalibrationError, CompactEdgeError, DamagedFileError, StorageError, UsageError
from compact.calibration.calibration_set import BUILT_IN, make_calibration, retokenise, split_stream
from compact.calibration.mixing import equal_shares, interleave
from compact.texts.documents import cut, read_documents
from tests.checkpoints import TEXTS, write_checkpoint

DOCUMENTS = [f"{n}: {text}\n" for n, text in enumerate(TEXTS * 4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("calibration") / "m", bos=True)


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in DOCUMENTS), encoding="utf-8")
    return path


def test_ids_are_those_of_the_tokenizer(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXTS[2], encoding="utf-8")
    made = make_calibration(str(path), model, tokens=10_000, sequence_length=64)
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(TEXTS[2]).ids
    assert ids[0] == 1  # BOS
    assert [i for sequence in made.sequences for i in sequence] == ids
    assert made.texts == (TEXTS[2],)
    assert {len(sequence) for sequence in made.sequences[:-1]} <= {64}


def test_a_seed_draws_the_same_again_and_another_draws_others(model: Path, jsonl: Path) -> None:
    first, again = (make_calibration(str(jsonl), model, tokens=300, sequence_length=64, seed=3) for _ in range(2))
    other = make_calibration(str(jsonl), model, tokens=300, sequence_length=64, seed=4)
    assert first == again
    assert first.sequences != other.sequences
    assert first.id != other.id
    assert set(first.texts) != set(other.texts), "not only the order, also the pieces differ"


@pytest.mark.parametrize("tokens", [16, 100, 301])
def test_no_more_tokens_than_asked_for(model: Path, jsonl: Path, tokens: int) -> None:
    made = make_calibration(str(jsonl), model, tokens=tokens, sequence_length=64)
    assert made.n_tokens == tokens
    assert made.options == {"tokens": tokens, "sequence_length": 64, "seed": 0}


def test_the_kind_of_file_does_not_matter(model: Path, tmp_path: Path, jsonl: Path) -> None:
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet, context = tmp_path / "a.parquet", tmp_path / "b.jsonl"
    pq.write_table(pyarrow.table({"id": list(range(len(DOCUMENTS))), "text": DOCUMENTS}), parquet)
    context.write_text("\n".join(json.dumps({"context": d, "n": 1}) for d in DOCUMENTS), encoding="utf-8")
    sets = [make_calibration(str(p), model, tokens=300, sequence_length=64) for p in (jsonl, parquet, context)]
    assert sets[0].sequences == sets[1].sequences == sets[2].sequences
    text = "".join(DOCUMENTS)
    for path, content in (("c.txt", text), ("c.jsonl", json.dumps({"text": text}))):
        (tmp_path / path).write_text(content, encoding="utf-8")
    pq.write_table(pyarrow.table({"text": [text, None]}), tmp_path / "c.parquet")
    whole = [
        make_calibration(str(tmp_path / f"c.{kind}"), model, tokens=300, sequence_length=64)
        for kind in ("txt", "jsonl", "parquet")
    ]
    assert whole[0].sequences == whole[1].sequences == whole[2].sequences


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", ""), ("a.txt", " \n\t\n"), ("a.jsonl", ""), ("a.jsonl", '{"text": ""}\n\n{"text": "  "}\n')],
)
def test_a_file_without_text(model: Path, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CalibrationError, match="contains no text"):
        make_calibration(str(tmp_path / name), model, tokens=100, sequence_length=64)


def test_a_text_that_is_too_short(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b")
    with pytest.raises(CalibrationError, match=r"only \d tokens of text"):
        make_calibration(str(tmp_path / "a.txt"), model, tokens=100, sequence_length=64)


def test_a_name_that_is_no_file(model: Path) -> None:
    with pytest.raises(CalibrationError, match="no such file") as caught:
        make_calibration("stdlib-prosa", model, tokens=100, sequence_length=64)
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in BUILT_IN)


@pytest.mark.parametrize(
    "line",
    [
        b'{"content": "x"}',
        b'{"text": 7}',
        b'["text"]',
        b'"text"',
        b'{"text": ',
        b'{"text": "half a pair \\ud83d"}',
        b"[" * 100_000,
        b"7",
    ],
    ids=["no field", "a number", "a list", "a string", "cut", "a lone surrogate", "nested too deep", "no object"],
)
def test_a_bad_record_names_its_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DamagedFileError, match=r"a\.jsonl:3: "):
        read_documents(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_bytes_that_are_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00PAR1" * 20)
    with pytest.raises(DamagedFileError):
        read_documents(tmp_path / name)


def test_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pyarrow.table({"content": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DamagedFileError, match="no column 'text' or 'context'"):
        read_documents(tmp_path / "a.parquet")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(StorageError):
            read_documents(path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_texts(model: Path, name: str) -> None:
    first, again = (make_calibration(name, model, tokens=400, sequence_length=64) for _ in range(2))
    assert first == again
    assert first.n_tokens == 400
    assert make_calibration(name, model, tokens=400, sequence_length=64, seed=1).sequences != first.sequences


def test_prose_shows_the_chat_template_s_specials(model: Path) -> None:
    made = make_calibration("stdlib-prose", model, tokens=4000, sequence_length=64)
    ids = [i for sequence in made.sequences for i in sequence]
    assert 2 in ids  # <|im_end|>, which only the template writes
    chats = [text for text in made.texts if "<|im_start|>user" in text]
    assert 0 < len(chats) < len(made.texts) / 4


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three texts that share no letter, so that every id says which text it is from: a long, b long, c short."""
    folder = tmp_path_factory.mktemp("letters")
    lines = {"a": 2000, "b": 2000, "c": 60}
    draw = random.Random(0)
    for letter, count in lines.items():
        (folder / f"{letter}.txt").write_text("".join(f"{letter * draw.randint(1, 9)}\n" for _ in range(count)))
    return {letter: folder / f"{letter}.txt" for letter in lines}


def letters_of(model: Path, ids: tuple[int, ...]) -> set[str]:
    return set(Tokenizer.from_file(str(model / "tokenizer.json")).decode(list(ids))) - set("\n ")


def test_several_sources_give_equal_shares_and_alternate(model: Path, letters: dict[str, Path]) -> None:
    names = [str(letters["a"]), str(letters["b"])]
    made = make_calibration(names, model, tokens=512, sequence_length=64)
    assert [letters_of(model, sequence) for sequence in made.sequences] == [{"a"}, {"b"}] * 4
    assert [(source.name, source.tokens) for source in made.sources] == [("a.txt", 256), ("b.txt", 256)]
    assert made.label == "a.txt + b.txt"
    assert made.id != make_calibration(names[::-1], model, tokens=512, sequence_length=64).id


def test_a_source_of_a_mix_gives_what_it_gives_alone(model: Path, letters: dict[str, Path]) -> None:
    names = [str(letters["a"]), "stdlib"]
    mixed = make_calibration(names, model, tokens=512, sequence_length=64)
    alone = make_calibration(names[0], model, tokens=256, sequence_length=64)
    assert mixed.sequences[::2] == alone.sequences
    assert mixed.sources[0].sha256 == alone.sha256 == hashlib.sha256(letters["a"].read_bytes()).hexdigest()


def test_where_a_source_is_short_the_others_fill_up(model: Path, letters: dict[str, Path]) -> None:
    names = [str(letters[letter]) for letter in "abc"]
    alone = make_calibration(names[2], model, tokens=10_000, sequence_length=64)
    made = make_calibration(names, model, tokens=1200, sequence_length=64)
    shares = [source.tokens for source in made.sources]
    assert shares[2] == alone.n_tokens < 400
    assert sum(shares) == made.n_tokens == 1200
    assert abs(shares[0] - shares[1]) <= 1
    assert [letters_of(model, sequence) for sequence in made.sequences].index({"c"}) < len(made.sequences) - 4


def test_a_source_that_is_named_twice(model: Path) -> None:
    with pytest.raises(UsageError, match="stdlib: named twice"):
        make_calibration(["stdlib", "stdlib-prose", "stdlib"], model, tokens=100, sequence_length=64)


def test_the_model_s_own_text_needs_a_model(model: Path) -> None:
    with pytest.raises(UsageError, match="--calibration self"):
        make_calibration("self", model, tokens=100, sequence_length=64)
    made = make_calibration("self", model, tokens=100, sequence_length=64, sampler=lambda n: [TEXTS[2]] * (n // 20))
    assert made.n_tokens == 100
    assert set(made.texts) == {TEXTS[2]}


@pytest.mark.parametrize("keep_out", [False, True])
@pytest.mark.parametrize("name", [*BUILT_IN, "jsonl", "a"])
def test_held_out_text_is_in_no_sequence(
    model: Path, jsonl: Path, letters: dict[str, Path], name: str, keep_out: bool
) -> None:
    names = {"jsonl": str(jsonl), "a": str(letters["a"])}
    made = make_calibration([names.get(name, name)], model, tokens=300, sequence_length=64, keep_out=keep_out)
    (held,) = made.held_out
    assert held.name == (Path(names[name]).name if name in names else name)
    assert 0 < len(held.text) <= 16_000
    assert held.text not in "".join(made.texts)
    assert not [text for text in made.texts if text in held.text]


def test_calibration_takes_the_whole_of_a_short_text_unless_some_is_kept_out(
    model: Path, letters: dict[str, Path]
) -> None:
    names = [str(letters["c"]), str(letters["a"])]
    plain, kept = (
        make_calibration(names, model, tokens=5000, sequence_length=16, keep_out=keep_out) for keep_out in (False, True)
    )
    whole = letters["c"].read_text()
    assert sum(len(text) for text in plain.texts if "c" in text) == len(whole)
    assert [held.name for held in plain.held_out] == ["a.txt"]
    assert [held.name for held in kept.held_out] == ["c.txt", "a.txt"]
    assert sum(len(text) for text in kept.texts if "c" in text) == len(whole) - len(kept.held_out[0].text)
    assert plain.id != kept.id


def test_of_a_single_piece_the_end_is_held_out_where_something_judges_on_it(model: Path, tmp_path: Path) -> None:
    text = "".join(TEXTS).replace("\r", "")  # 465 characters, and a piece has up to 512
    (tmp_path / "a.txt").write_text(text)
    made = make_calibration(str(tmp_path / "a.txt"), model, tokens=5000, sequence_length=128)
    assert made.held_out == ()
    assert made.texts == (text,)
    judging = make_calibration(str(tmp_path / "a.txt"), model, tokens=5000, sequence_length=128, keep_out=True)
    (held,) = judging.held_out
    assert "".join((*judging.texts, held.text)) == text
    assert 0 < len(held.text) < len(text) / 2


def test_what_is_held_out_hides_nowhere_else_in_the_text(model: Path, tmp_path: Path) -> None:
    """A text that repeats itself: its last piece is one of the first too."""
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps({"text": TEXTS[0] * 3}) + "\n") * 20)
    assert make_calibration(str(path), model, tokens=100, sequence_length=64, keep_out=True).held_out == ()


@given(have=st.lists(st.integers(0, 60), min_size=1, max_size=5), total=st.integers(1, 200))
def test_shares_are_as_equal_as_the_sources_allow(have: list[int], total: int) -> None:
    given_ = equal_shares([lambda n, most=most: min(n, most) for most in have], total)  # type: ignore[misc]
    assert sum(given_) == min(total, sum(have))
    # Nobody who has more gets less than another, but for what cannot be divided.
    assert all(mine >= other - 1 or mine == most for mine, most in zip(given_, have, strict=True) for other in given_)


@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=4))
def test_every_beginning_of_a_mix_holds_each_source_by_its_share(counts: list[int]) -> None:
    mixed = interleave([[(source, at) for at in range(count)] for source, count in enumerate(counts)])
    for source, count in enumerate(counts):
        assert [at for who, at in mixed if who == source] == list(range(count)), "in order, none lost"
        for end in range(len(mixed) + 1):
            taken = sum(who == source for who, _ in mixed[:end])
            assert abs(taken - count * end / len(mixed)) < len(counts) if mixed else True


@given(document=st.text(), size=st.integers(1, 50))
def test_pieces_are_the_document(document: str, size: int) -> None:
    pieces = cut(document, size)
    assert "".join(pieces) == document
    assert all(0 < len(piece) <= size for piece in pieces)


@given(stream=st.lists(st.integers()), length=st.integers(1, 20))
def test_sequences_are_the_stream(stream: list[int], length: int) -> None:
    sequences = split_stream(stream, length)
    assert [i for sequence in sequences for i in sequence] == stream
    assert all(len(sequence) == length for sequence in sequences[:-1])


def test_the_same_texts_for_another_tokenizer(model: Path, tmp_path: Path) -> None:
    sequences = retokenise([TEXTS[0], TEXTS[1]], model, sequence_length=32)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert [i for s in sequences for i in s] == tokenizer.encode(TEXTS[0]).ids + tokenizer.encode(TEXTS[1]).ids


def test_a_tokenizer_that_cannot_be_loaded_is_damaged_data(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    with pytest.raises(CompactEdgeError) as caught:
        make_calibration("stdlib", tmp_path, tokens=100, sequence_length=64)
    assert isinstance(caught.value, DamagedFileError)
    assert "\n" not in caught.value.message
