"""A GGUF is recognised by its content: files of any name, parts of a split GGUF, and files that are not models."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compact.base.cache import Cache
from compact.base.errors import CompactEdgeError, DamagedFileError, DataError, ModelNotFoundError, UsageError
from compact.checkpoints.gguf_file import read_gguf
from compact.checkpoints.gguf_model import gguf_in_folder, read_gguf_model
from compact.sources.model_source import ModelSource, open_source
from exporters.gguf.split import split_gguf
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.engine import LlamaEngine
from exporters.opened import named_artifact
from tests.checkpoints import write_checkpoint
from tests.compact.sources.gguf_edits import rewritten


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("names") / "hf", dtype=torch.float16)


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> Path:
    path = checkpoint.parent / "my model.gguf"
    write_gguf(checkpoint, path, "F16")
    return path


@pytest.fixture(scope="module")
def parts(whole: Path) -> list[Path]:
    folder = whole.parent / "parts"
    folder.mkdir()
    return split_gguf(whole, folder, 70_000)


def opened(path: Path, tmp_path: Path) -> ModelSource:
    return open_source(str(path), Cache(tmp_path / "cache", [], []))


def weights(source: ModelSource) -> dict[str, torch.Tensor]:
    return load_file(source.directory / "model.safetensors")


def assert_same_weights(source: ModelSource, checkpoint: Path) -> None:
    expected, found = load_file(checkpoint / "model.safetensors"), weights(source)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.parametrize("name", ["sha256-" + "6e4c" * 16, "model.bin"])
def test_a_gguf_under_another_name(whole: Path, checkpoint: Path, tmp_path: Path, name: str) -> None:
    blob = Path(shutil.copy(whole, tmp_path / name))
    renamed = rewritten(blob, tmp_path / "named.gguf", general__name="My Model 7B")
    named = Path(shutil.copy(renamed, tmp_path / "sha256-00"))
    source = opened(blob, tmp_path)
    assert source.name == "hf"  # `general.name` of the writer
    assert_same_weights(source, checkpoint)
    assert opened(named, tmp_path).name == "My-Model-7B"
    artifact = named_artifact(str(blob))
    assert artifact is not None and artifact.format.name == "gguf" and artifact.path == blob


def test_links_of_a_hub_cache(whole: Path, parts: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    """A snapshot has links to blobs named by their hash. The other parts are beside the link, not beside the blob."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(parts):
        shutil.copy(path, blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / f"{number:064x}", snapshot))
    source = opened(snapshot / parts[0].name, tmp_path)
    assert source.name == "my-model"
    assert_same_weights(source, checkpoint)
    artifact = named_artifact(str(snapshot / parts[1].name))
    assert artifact is not None
    ids = [5, 6, 7, 8]
    with LlamaEngine(artifact.path) as linked, LlamaEngine(whole) as direct:
        assert np.array_equal(linked.logits(ids), direct.logits(ids))


def test_any_part_and_the_folder_mean_the_whole(
    whole: Path, parts: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    assert len(parts) > 2
    shutil.copy(whole, tmp_path / "whole.gguf")
    (tmp_path / "folder").mkdir()
    for path in parts:
        shutil.copy(path, tmp_path / "folder")
    matrix = gguf.GGUFWriter(tmp_path / "folder" / "imatrix.gguf", "llama")
    matrix.add_type("imatrix")
    matrix.write_header_to_file()
    matrix.write_kv_data_to_file()
    matrix.close()
    wanted = opened(tmp_path / "whole.gguf", tmp_path)
    for named in (parts[0], parts[1], parts[-1], tmp_path / "folder"):
        source = opened(named, tmp_path)
        (tmp_path / "folder" / "config.json").write_text("{}")  # as many folders on the Hub have it
        assert (source.id, source.name) == (wanted.id, "my-model")
        artifact = named_artifact(str(named))
        assert artifact is not None and artifact.path.name == parts[0].name
    assert_same_weights(source, checkpoint)
    joined = {tensor.name: tensor for path in parts for tensor in gguf.GGUFReader(path).tensors}
    head = read_gguf_model(parts[1])
    assert head.files == tuple(parts) and head.values == read_gguf(whole).values
    for name, tensor in head.tensors.items():
        raw = head.read_rows(tensor, 0, tensor.shape[0])
        assert raw.tobytes() == joined[name].data.tobytes(), name


def test_parts_that_do_not_fit_together(parts: list[Path], tmp_path: Path) -> None:
    alone = Path(shutil.copy(parts[0], tmp_path / parts[0].name))
    missing = rf"part 1 of {len(parts)} of a split GGUF; its folder lacks {parts[1].name}, {parts[2].name}"
    with pytest.raises(ModelNotFoundError, match=missing):
        opened(alone, tmp_path)
    blob = Path(shutil.copy(parts[1], tmp_path / "sha256-ab"))
    with pytest.raises(DataError, match=f"part 2 of {len(parts)}") as caught:
        opened(blob, tmp_path)
    assert caught.value.hint is not None and "llama-gguf-split --merge" in caught.value.hint
    for path in parts[1:]:
        shutil.copy(path, tmp_path)
    second, third = tmp_path / parts[1].name, tmp_path / parts[2].name
    second.rename(tmp_path / "other")
    third.rename(second)
    (tmp_path / "other").rename(third)
    with pytest.raises(DamagedFileError, match=f"{parts[1].name}: the name says part 2"):
        opened(alone, tmp_path)


def test_a_folder_of_several_models(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    for path in (whole, *parts):
        shutil.copy(path, tmp_path)
    with pytest.raises(UsageError, match="contains 2 GGUF files") as caught:
        opened(tmp_path, tmp_path / "c")
    assert caught.value.hint == f"name one: {parts[0].name}, {whole.name}"
    assert gguf_in_folder(tmp_path / "c") is None


def head(version: int = 3, order: str = "<") -> bytes:
    return b"GGUF" + struct.pack(order + "IQQ", version, 0, 0) + bytes(64)


NOT_MODELS = {
    "empty": (b"", "the file is empty", "download"),
    "an LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "Git LFS",
        "git lfs pull",
    ),
    "a web page": (b"<!DOCTYPE html>\n<html><body>401</body></html>", "web page", "token"),
    "GGML": (b"lmgg" + bytes(60), "GGML file", "use its GGUF"),
    "GGJT": (b"tjgg" + bytes(60), "GGML file", "use its GGUF"),
    "an old adapter": (b"algg" + bytes(60), "LoRA adapter", "merge"),
    "a pickle": (b"PK\x03\x04" + bytes(60), "pickle", "checkpoint"),
    "safetensors": (struct.pack("<Q", 2) + b"{}" + bytes(60), "safetensors", "directory"),
    # The length of the header, 640, has the first bytes of a pickle.
    "more safetensors": (struct.pack("<Q", 640) + b"{" + bytes(700), "safetensors", "directory"),
    "JSON": (b'{"model_type": "llama"}', "JSON", "directory"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "archive", "unpack"),
    "zeros": (bytes(4096), "zeros", "download"),
    "an old importance matrix": (struct.pack("<ii", 3, 18) + b"blk.0.attn_k.weight", "importance matrix", "--imatrix"),
    "text": (b"hello world", "not a GGUF file", "GGUF"),
    "version 1": (head(1), "version 1 is not 2 or 3", "newer GGUF"),
    "big-endian": (head(3, ">"), "big-endian", "gguf-convert-endian"),
}


@pytest.mark.parametrize("case", NOT_MODELS)
@pytest.mark.parametrize("name", ["m.gguf", "blob"])
def test_files_that_are_not_a_gguf_are_named(tmp_path: Path, case: str, name: str) -> None:
    content, what, hint = NOT_MODELS[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=what) as caught:
        opened(path, tmp_path)
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.hint is not None and hint in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "what", "hint"),
    [
        ({"general__type": "imatrix"}, "an importance matrix", "--imatrix"),
        ({"general__type": "adapter"}, "a LoRA adapter", "llama-export-lora"),
        ({"general__type": "mmproj"}, "mmproj", "language model"),
    ],
)
def test_ggufs_that_are_not_models(whole: Path, tmp_path: Path, changes: dict[str, str], what: str, hint: str) -> None:
    changed = rewritten(whole, tmp_path / "m.gguf", **changes)
    for attempt in (lambda: opened(changed, tmp_path), lambda: named_artifact(str(changed))):
        with pytest.raises(DataError, match=what) as caught:
            attempt()
        assert caught.value.hint is not None and hint in caught.value.hint


@pytest.mark.parametrize(("arch", "what"), [("clip", "mmproj"), ("controlvector", "control vector")])
def test_older_files_are_known_by_their_architecture(tmp_path: Path, arch: str, what: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
    writer.add_tensor("v.weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DataError, match=what):
        opened(tmp_path / "m.gguf", tmp_path)


def test_a_download_that_stopped(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    (tmp_path / "m.gguf").write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(DamagedFileError, match=rf"incomplete: it has {len(content) * 3 // 4} bytes") as caught:
        opened(tmp_path / "m.gguf", tmp_path)
    assert caught.value.hint == "download the file again"
    # Some uploads are cut by bytes: the first piece begins as a GGUF, the second does not.
    for name, piece in (("m.gguf-split-a", content[:60_000]), ("m.gguf.part2of2", content[60_000:])):
        (tmp_path / name).write_bytes(piece)
        with pytest.raises(DamagedFileError) as caught:
            opened(tmp_path / name, tmp_path)
        assert caught.value.hint == "join all pieces in order: cat m.gguf* > joined.gguf"


@pytest.mark.parametrize(
    ("number", "name", "plain"), [(31, "Q4_0_4_4", "Q4_0"), (38, "IQ4_NL_8_8", "IQ4_NL"), (5, "Q4_3", "Q4_1")]
)
def test_removed_types_are_named(whole: Path, tmp_path: Path, number: int, name: str, plain: str) -> None:
    content = bytearray(whole.read_bytes())
    key = b"blk.0.ffn_up.weight"
    struct.pack_into("<I", content, content.index(key) + len(key) + 4 + 16, number)
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"{key.decode()}' has the type {name}") as caught:
        opened(tmp_path / "m.gguf", tmp_path)
    assert caught.value.hint == f"use a file of another type, such as {plain}"
    with pytest.raises(CompactEdgeError):  # llama.cpp does not read it either
        LlamaEngine(tmp_path / "m.gguf")
