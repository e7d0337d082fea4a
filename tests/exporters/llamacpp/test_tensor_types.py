"""Types of single tensors: the file has exactly these, and its bytes are those of a plain file of the type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from compact.base.errors import BudgetError, CompactEdgeError, UsageError
from compact.pruning.plan import read_plan
from exporters.gguf_writer.metadata import GgufMetadata
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.header import read_header
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.quant_types import quant_named
from exporters.llamacpp.quantize import quantize_gguf
from tests.checkpoints import write_checkpoint
from tests.compact.pruned_checkpoints import prune_to
from tests.exporters.small_gguf import random_gguf, random_imatrix

SIZES: dict[str, Any] = {
    "n_layer": 2,
    "hidden": 256,
    "n_ff": 512,
    "n_head": 4,
    "n_head_kv": 2,
    "vocab": 64,
    "tied": True,
}
MIX = {
    "blk.0.attn_q.weight": "Q8_0",
    "blk.0.ffn_down.weight": "Q5_0",
    "blk.1.ffn_down.weight": "Q6_K",
    "blk.1.ffn_up.weight": "IQ4_NL",
    "token_embd.weight": "Q4_0",
}
PLAIN = {"Q8_0": "Q8_0", "Q5_0": "Q5_0", "Q6_K": "Q6_K", "IQ4_NL": "IQ4_NL"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf(tmp_path_factory.mktemp("source") / "in.gguf", **SIZES)


@pytest.fixture(scope="module")
def matrix(source: Path) -> Imatrix:
    return random_imatrix(read_header(source).model_shape("in.gguf"))


@pytest.fixture(scope="module")
def mixed(source: Path, matrix: Imatrix, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "mixed.gguf"
    quantize_gguf(source, path, "Q4_K_M", imatrix=matrix, tensor_types=MIX)
    return path


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Name -> type and bytes, by the `gguf` package."""
    return {t.name: (t.tensor_type.name, np.asarray(t.data).tobytes()) for t in GGUFReader(path).tensors}


def test_the_file_has_exactly_these_types(source: Path, matrix: Imatrix, mixed: Path, tmp_path: Path) -> None:
    quantize_gguf(source, tmp_path / "plain.gguf", "Q4_K_M", imatrix=matrix)
    plain, found = tensors(tmp_path / "plain.gguf"), tensors(mixed)
    assert found.keys() == plain.keys()
    n_changed = 0
    for name, (kind, data) in found.items():
        if name in MIX:
            assert kind == MIX[name], name
            n_changed += kind != plain[name][0]
        else:
            assert (kind, data) == plain[name], name
    assert n_changed >= len(MIX) - 1


def test_values_are_those_of_a_plain_file_of_the_type(
    source: Path, matrix: Imatrix, mixed: Path, tmp_path: Path
) -> None:
    found = tensors(mixed)
    for kind, quant in PLAIN.items():
        quantize_gguf(source, tmp_path / quant, quant, imatrix=matrix if quant_named(quant).uses_imatrix else None)
        plain = tensors(tmp_path / quant)
        for name in (name for name in MIX if MIX[name] == kind):
            assert found[name] == plain[name], name


@pytest.mark.parametrize(
    ("types", "kind", "words"),
    [
        ({"blk.7.ffn_up.weight": "Q8_0"}, CompactEdgeError, "blk.7.ffn_up.weight"),
        ({"blk.0.ffn_up.weight": "Q9_9"}, UsageError, "Q9_9"),
    ],
)
def test_unknown_names_are_refused_in_a_line(
    source: Path, tmp_path: Path, types: dict[str, str], kind: type[CompactEdgeError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        quantize_gguf(source, tmp_path / "out.gguf", "Q4_0", tensor_types=types)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert not (tmp_path / "out.gguf").exists()


def test_rows_that_do_not_fit_are_refused_in_a_line(tmp_path: Path) -> None:
    odd = random_gguf(tmp_path / "odd.gguf", **{**SIZES, "n_ff": 288})
    with pytest.raises(BudgetError, match=r"blk\.0\.ffn_down\.weight") as caught:
        quantize_gguf(odd, tmp_path / "out.gguf", "Q4_0", tensor_types={"blk.0.ffn_down.weight": "Q6_K"})
    assert "\n" not in caught.value.message
    assert not (tmp_path / "out.gguf").exists()


# ----- matrices of pruned models


@pytest.mark.parametrize("tensor", ["ffn_down", "attn_q"])
def test_a_pruned_matrix_keeps_the_rows_of_the_kept_channels(matrix: Imatrix, tensor: str) -> None:
    kept = [sorted(np.random.default_rng(layer).choice(512, 320, replace=False).tolist()) for layer in range(2)]
    pruned = matrix.pruned(kept)
    for layer in range(2):
        name = f"blk.{layer}.{tensor}.weight"
        expected = [matrix.means[name][i] for i in kept[layer]] if tensor == "ffn_down" else list(matrix.means[name])
        assert pruned.means[name].tolist() == expected
    assert pruned.means.keys() == matrix.means.keys()
    assert matrix.means["blk.0.ffn_down.weight"].size == 512, "the matrix itself stays"
    assert pruned.id != matrix.id


def test_a_pruned_model_is_quantised_with_a_pruned_matrix(tmp_path: Path) -> None:
    """`IQ2_S` refuses models without one, and a matrix of other sizes is an error."""
    folder = write_checkpoint(tmp_path / "m", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    out = prune_to(folder, tmp_path / "pruned", vocab_size=300, intermediate_size=256, method="magnitude")
    files = {}
    for name, checkpoint in (("whole", folder), ("pruned", out)):
        files[name] = tmp_path / f"{name}.gguf"
        write_gguf(checkpoint, files[name], "F32", metadata=GgufMetadata(name="m"))
    kept = read_plan(out / "plan.json").kept_channels
    whole = random_imatrix(read_header(files["whole"]).model_shape("whole"))
    with pytest.raises(CompactEdgeError, match=r"blk\.0\.ffn_down\.weight has 512 values"):
        quantize_gguf(files["pruned"], tmp_path / "out.gguf", "IQ2_S", imatrix=whole)
    quantize_gguf(files["pruned"], tmp_path / "out.gguf", "IQ2_S", imatrix=whole.pruned(kept))
    assert tensors(tmp_path / "out.gguf")["blk.0.ffn_up.weight"][0].startswith("IQ2")
