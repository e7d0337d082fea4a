"""GGUF files made to break a reader: each must end in a typed error, quickly, with little memory and nothing written
outside the target directory.

The layout of the bytes is written out here by hand, so that a file can lie about every length and offset.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compact.base.errors import CompactEdgeError, DamagedFileError, DataError, UnsafePathError
from compact.checkpoints.gguf_file import read_gguf
from compact.sources.from_gguf import read_gguf_checkpoint
from exporters.gguf_writer.write import write_gguf
from tests.checkpoints import write_checkpoint

HUGE = 1 << 62
UINT8, UINT32, STRING, ARRAY, BOOL = 0, 4, 8, 9, 7


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def head(n_tensors: int = 0, n_values: int = 0, *, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, n_tensors, n_values)


def value(key: str | bytes, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def array(kind: int, length: int, raw: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + raw


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    count = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


PADDING = bytes(4096)
HOSTILE: dict[str, bytes] = {
    "empty file": b"",
    "only the magic": b"GGUF",
    "another magic": head(magic=b"GGML") + PADDING,
    "version 1": head(version=1) + PADDING,
    "version 4": head(version=4) + PADDING,
    "big-endian": head(version=3 << 24) + PADDING,
    "more tensors than bytes": head(n_tensors=HUGE) + PADDING,
    "more keys than bytes": head(n_values=HUGE) + PADDING,
    "counts that overflow 64 bits together": head(n_tensors=(1 << 64) - 1, n_values=(1 << 64) - 1) + PADDING,
    "a few keys too many": head(n_values=300) + PADDING,
    "key of 2^62 bytes": head(n_values=1) + text("", HUGE) + PADDING,
    "key beyond the limit": head(n_values=1) + value("k" * 70_000, UINT32, bytes(4)) + PADDING,
    "key that is no UTF-8": head(n_values=1) + value(b"\xff\xfe", UINT32, bytes(4)) + PADDING,
    "string of 2^62 bytes": head(n_values=1) + value("a", STRING, text("", HUGE)) + PADDING,
    "string past the end by one": head(n_values=1) + value("a", STRING, text("", 4097)) + PADDING,
    "array of 2^62 bytes": head(n_values=1) + value("a", ARRAY, array(UINT8, HUGE)) + PADDING,
    "array of 2^62 strings": head(n_values=1) + value("a", ARRAY, array(STRING, HUGE)) + PADDING,
    "array whose size overflows": head(n_values=1) + value("a", ARRAY, array(UINT32, (1 << 62) + 1)) + PADDING,
    "array in an array": head(n_values=1) + value("a", ARRAY, array(ARRAY, 5)) + PADDING,
    "unknown value type": head(n_values=1) + value("a", 13, bytes(8)) + PADDING,
    "unknown array type": head(n_values=1) + value("a", ARRAY, array(99, 1)) + PADDING,
    "a key twice": head(n_values=2) + 2 * value("a", UINT32, bytes(4)) + PADDING,
    "alignment 0": head(n_values=1) + value("general.alignment", UINT32, bytes(4)) + PADDING,
    "alignment 3": head(n_values=1) + value("general.alignment", UINT32, struct.pack("<I", 3)) + PADDING,
    "alignment that is a string": head(n_values=1) + value("general.alignment", STRING, text("32")) + PADDING,
    "alignment of 2^31": head(1, 1)
    + value("general.alignment", UINT32, struct.pack("<I", 1 << 31))
    + tensor("t", (8,))
    + PADDING,
    "no dimensions": head(1) + tensor("t", ()) + PADDING,
    "2^31 dimensions": head(1) + tensor("t", (4,), n_dims=1 << 31) + PADDING,
    "a dimension of 0": head(1) + tensor("t", (4, 0)) + PADDING,
    "dimensions whose product wraps to 0": head(1) + tensor("t", (1 << 32, 1 << 32)) + PADDING,
    "a tensor larger than the file": head(1) + tensor("t", (1 << 20, 64)) + PADDING,
    "an offset past the end": head(1) + tensor("t", (8,), offset=1 << 40) + PADDING,
    "an offset that wraps around": head(1) + tensor("t", (8,), offset=(1 << 64) - 32) + PADDING,
    "an offset between the grid": head(1) + tensor("t", (8,), offset=4) + PADDING,
    "an unknown tensor type": head(1) + tensor("t", (8,), kind=12345) + PADDING,
    "a row that fits no block": head(1) + tensor("t", (33, 2), kind=8) + PADDING,
    "a tensor name without end": head(1) + tensor("t" * 65, (8,)) + PADDING,
    "a tensor twice": head(2) + 2 * tensor("t", (8,)) + PADDING,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_head_is_damaged(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE[case])
    out = tmp_path / "out"
    out.mkdir()
    tracemalloc.start()
    with pytest.raises(DamagedFileError) as caught:
        read_gguf_checkpoint(path, out)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000, "memory was taken for what the file only claims"
    tracemalloc.stop()
    assert "\n" not in caught.value.message
    assert list(out.iterdir()) == []


def test_a_sparse_file_with_a_huge_count_is_read_no_further(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(head(n_values=HUGE >> 8))
        file.truncate(1 << 40)  # the file "has room" for a great deal; the keys in it are empty and equal
    with pytest.raises(DamagedFileError):
        read_gguf(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("hostile")
    source = write_checkpoint(folder / "hf", num_hidden_layers=1, hidden_size=32, intermediate_size=32)
    write_gguf(source, folder / "m.gguf", "F16")
    return (folder / "m.gguf").read_bytes()


def attempt(data: bytes, folder: Path) -> None:
    """Read a file; only typed errors may come out."""
    path, out = folder / "m.gguf", folder / "out"
    path.write_bytes(data)
    out.mkdir()
    try:
        read_gguf_checkpoint(path, out)
    except CompactEdgeError as error:
        assert "\n" not in error.message


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_every_truncation_is_damaged(small: bytes, tmp_path: Path, share: float) -> None:
    (tmp_path / "m.gguf").write_bytes(small[: int(len(small) * share)])
    with pytest.raises(DamagedFileError):
        read_gguf_checkpoint(tmp_path / "m.gguf", tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_changed_bytes_never_give_an_untyped_error(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        # Mostly in the head, where the lengths are.
        at = data.draw(st.integers(0, 2200) | st.integers(0, len(small) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    attempt(bytes(changed), tmp_path_factory.mktemp("fuzz"))


def replaced(small: bytes, old: bytes, new: bytes) -> bytes:
    """The file with one byte string replaced by another of the same length."""
    assert small.count(old) >= 1 and len(old) == len(new)
    return small.replace(old, new, 1)


@pytest.mark.parametrize("broken", [{"type": "Unigram", "vocab": [["a", 0.0]]}, {"type": "BPE"}, [], None, "BPE"])
def test_a_broken_tokenizer_is_refused_even_where_the_pre_tokenizer_is_given(tmp_path: Path, broken: object) -> None:
    source = write_checkpoint(tmp_path / "hf", num_hidden_layers=1)
    document = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    (source / "tokenizer.json").write_text(json.dumps({**document, "model": broken}), encoding="utf-8")
    with pytest.raises(DataError):
        write_gguf(source, tmp_path / "m.gguf", "F16", pre="gpt-2")


@pytest.mark.parametrize("name", ["../../../../evil", "/tmp/evil", "..", "a\x00b", "a/b", "C:evil"])
def test_a_chat_template_s_name_cannot_leave_the_directory(small: bytes, tmp_path: Path, name: str) -> None:
    extra = value(f"tokenizer.chat_template.{name}", STRING, text("{{ x }}"))
    n_tensors, n_values = struct.unpack_from("<QQ", small, 8)
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    # Grown by a multiple of the alignment, so that the tensors stay on the grid.
    filler_size = -(len(extra) + len(value("filler", STRING, text("")))) % 32
    extra += value("filler", STRING, text("x" * filler_size))
    changed = head(n_tensors, n_values + 2) + extra + small[24:]
    (tmp_path / "m.gguf").write_bytes(changed)
    with pytest.raises(UnsafePathError):
        read_gguf_checkpoint(tmp_path / "m.gguf", out)
    assert list(tmp_path.rglob("*evil*")) == []
    assert list(out.rglob("*")) == []


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "a tensor renamed with a path": lambda raw: replaced(raw, b"blk.0.ffn_up.weight", b"../../../../../evil"),
    "a tensor renamed to another's": lambda raw: replaced(raw, b"blk.0.attn_norm.weight", b"blk.0.ffn_norm0.weight"),
    "another kind of tokenizer": lambda raw: replaced(raw, text("gpt2"), text("bert")),
    "another pre-tokenizer": lambda raw: replaced(raw, text("gpt-2"), text("gpt-9")),
    "another architecture": lambda raw: replaced(raw, text("llama"), text("lmaxx")),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_name_that_does_not_fit_is_refused(small: bytes, tmp_path: Path, case: str) -> None:
    (tmp_path / "m.gguf").write_bytes(CHANGES[case](small))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CompactEdgeError):
        read_gguf_checkpoint(tmp_path / "m.gguf", out)
    assert list(tmp_path.rglob("*evil*")) == []


def test_front_matter_cannot_be_injected(tmp_path: Path) -> None:
    from exporters.gguf_writer.metadata import GgufMetadata

    evil = 'mit"\nbase_model: evil/model\n---\n# x'
    source = write_checkpoint(tmp_path / "hf", num_hidden_layers=1)
    (source / "README.md").write_text(f"---\nlicense: {json.dumps(evil)}\n---\n", encoding="utf-8")
    write_gguf(source, tmp_path / "m.gguf", "F16", metadata=GgufMetadata(name=evil))
    out = tmp_path / "out"
    out.mkdir()
    info = read_gguf_checkpoint(tmp_path / "m.gguf", out)
    assert (info.name, info.licence, info.base_model) == (evil, evil, None)
    front = gguf.Metadata.load_model_card(out)
    assert front == {"license": evil, "library_name": "transformers"}


def test_booleans_are_read_as_booleans_whatever_their_byte(tmp_path: Path) -> None:
    raw = head(n_values=2) + value("a", BOOL, b"\x07") + value("b", ARRAY, array(BOOL, 2, b"\x00\xff")) + PADDING
    (tmp_path / "m.gguf").write_bytes(raw)
    assert dict(read_gguf(tmp_path / "m.gguf").values) == {"a": True, "b": [False, True]}
