"""Split files: where the cuts are, that llama.cpp reads them, and that nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest

from compact.base.errors import DamagedFileError, GateError, UsageError
from compact.checkpoints.gguf_file import read_gguf
from compact.pruning.budget_options import parse_size
from exporters.gguf.split import check_parts, part_names, split_gguf
from exporters.llamacpp.engine import LlamaEngine
from tests.exporters.small_gguf import TEXT, encode, random_gguf, reference_logits

LIMIT = 100_000


@pytest.fixture(scope="module")
def parts(small_gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return split_gguf(small_gguf_file, tmp_path_factory.mktemp("pärts"), LIMIT)


def test_llama_cpp_opens_the_first_part_as_the_whole(
    small_gguf_file: Path, small_checkpoint: Path, parts: list[Path]
) -> None:
    ids = encode(small_checkpoint, TEXT)[:64]
    with LlamaEngine(small_gguf_file) as whole, LlamaEngine(parts[0]) as first:
        assert first.tokenize([TEXT], parse_special=True) == whole.tokenize([TEXT], parse_special=True)
        assert np.array_equal(first.logits(ids), whole.logits(ids))
        assert np.allclose(first.logits(ids), reference_logits(small_checkpoint, ids), atol=1e-3)
    with pytest.raises(DamagedFileError):
        LlamaEngine(parts[1])


def test_names_keys_and_order(small_gguf_file: Path, parts: list[Path]) -> None:
    """As the gguf package reads them."""
    n = len(parts)
    assert n > 2 and [path.name for path in parts] == [f"small-{i + 1:05d}-of-{n:05d}.gguf" for i in range(n)]
    whole = gguf.GGUFReader(small_gguf_file)
    readers = [gguf.GGUFReader(path) for path in parts]
    assert [t.name for reader in readers for t in reader.tensors] == [t.name for t in whole.tensors]
    stored = {t.name: t for reader in readers for t in reader.tensors}
    for tensor in whole.tensors:
        assert np.array_equal(stored[tensor.name].data, tensor.data)
        assert stored[tensor.name].tensor_type == tensor.tensor_type
    for number, reader in enumerate(readers):
        assert reader.fields["split.no"].contents() == number
        assert reader.fields["split.count"].contents() == n
        assert reader.fields["split.tensors.count"].contents() == len(whole.tensors)
        assert ("tokenizer.ggml.tokens" in reader.fields) is (number == 0)
        assert sum(t.n_bytes for t in reader.tensors) <= LIMIT
    # No part could have taken the next one's first tensor.
    for left, right in pairwise(readers):
        assert sum(t.n_bytes for t in left.tensors) + right.tensors[0].n_bytes > LIMIT


@pytest.mark.skipif(shutil.which("llama-gguf-split") is None, reason="llama-gguf-split is not on PATH")
@pytest.mark.parametrize("size", ["1M", "2M"])
def test_bytes_are_those_of_llama_cpps_tool(tmp_path: Path, size: str) -> None:
    whole = random_gguf(
        tmp_path / "whole.gguf", n_layer=9, hidden=256, n_ff=384, n_head=4, n_head_kv=2, vocab=1000, tied=False
    )
    (tmp_path / "ours").mkdir()
    ours = split_gguf(whole, tmp_path / "ours", parse_size(size))
    tool = ["llama-gguf-split", "--split", "--split-max-size", size, str(whole), str(tmp_path / "whole")]
    subprocess.run(tool, check=True, capture_output=True)
    theirs = sorted(tmp_path.glob("whole-*.gguf"))
    assert [path.name for path in ours] == [path.name for path in theirs] and len(ours) > 1
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]
    subprocess.run(["llama-gguf-split", "--merge", str(ours[0]), str(tmp_path / "merged.gguf")], check=True)
    before, after = (gguf.GGUFReader(tmp_path / name) for name in ("whole.gguf", "merged.gguf"))
    assert all(np.array_equal(a.data, b.data) for a, b in zip(before.tensors, after.tensors, strict=True))


def test_a_file_that_fits_stays_whole(small_gguf_file: Path, tmp_path: Path) -> None:
    assert split_gguf(small_gguf_file, tmp_path, parse_size("1G")) == []
    assert list(tmp_path.iterdir()) == []


def test_names() -> None:
    assert part_names("m", 2) == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


def test_what_cannot_be_split(small_gguf_file: Path, parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"token_embd.weight alone has 0\.1 MB") as caught:
        split_gguf(small_gguf_file, tmp_path, 50_000)
    assert caught.value.hint == "give at least 1M"
    with pytest.raises(DamagedFileError, match="already split"):
        split_gguf(parts[0], tmp_path, LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_parts_that_differ_are_found(small_gguf_file: Path, parts: list[Path], tmp_path: Path) -> None:
    def copied(name: str) -> list[Path]:
        (tmp_path / name).mkdir()
        return [Path(shutil.copy(path, tmp_path / name)) for path in parts]

    check_parts(small_gguf_file, parts)
    flipped = copied("flipped")
    tensor = next(iter(read_gguf(flipped[1]).tensors.values()))
    content = bytearray(flipped[1].read_bytes())
    content[tensor.offset + tensor.n_bytes - 1] ^= 1
    flipped[1].write_bytes(content)
    with pytest.raises(GateError, match=tensor.name):
        check_parts(small_gguf_file, flipped)
    with pytest.raises(GateError):
        check_parts(small_gguf_file, parts[:-1])
    with pytest.raises(GateError):
        check_parts(small_gguf_file, [parts[1], parts[0], *parts[2:]])
    torn = copied("torn")
    torn[-1].write_bytes(torn[-1].read_bytes()[:-100])
    with pytest.raises(DamagedFileError):
        check_parts(small_gguf_file, torn)
