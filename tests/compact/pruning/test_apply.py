"""The pruned checkpoint against pruning in memory through Transformers; dtypes, shards, files and memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from compact.architectures.layout import expected_shapes
from compact.architectures.table import FAMILIES
from compact.base.errors import DamagedFileError, PlanMismatchError
from compact.base.files import publish
from compact.checkpoints.safetensors_file import TensorRef
from compact.checkpoints.shards import read_index
from compact.checkpoints.writers import TensorSpec, write_checkpoint
from compact.pruning.apply import prune
from compact.pruning.plan import PrunePlan, read_plan
from compact.sources.model_source import ModelSource, open_directory
from tests import checkpoints
from tests.checkpoints import TEXTS
from tests.compact.pruned_checkpoints import document, load, plan_for, prune_to, pruned_in_memory

SIZES = {"vocab_size": 320, "intermediate_size": 32, "method": "random"}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "llama with biases", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shards", [1, 3])
def test_logits_equal_pruning_in_memory(
    tmp_path: Path, family: str, tied: bool, dtype: torch.dtype, shards: int
) -> None:
    kind, _, biased = family.partition(" ")
    changes: dict[str, Any] = {"attention_bias": True, "mlp_bias": True} if biased else {}
    before = checkpoints.write_checkpoint(
        tmp_path / "m", kind, dtype=dtype, shards=shards, tie_word_embeddings=tied, **changes
    )
    after = prune_to(before, tmp_path / "out", **SIZES)
    plan = read_plan(after / "plan.json")
    ids = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = load(after)(ids).logits, pruned_in_memory(before, plan)(ids).logits
    assert ours.shape == (2, 40, 320)
    assert (ours - theirs).abs().max().item() == 0.0
    names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
    tensors = read_index(after)
    assert {ref.dtype for ref in tensors.values()} == {names[dtype]}
    assert tensors.keys() == read_index(before).keys()


def test_sizes_are_written_and_the_rest_of_the_configuration_stays(tmp_path: Path) -> None:
    before = checkpoints.write_checkpoint(tmp_path / "m", rope_theta=5e5, some_key={"a": [1]})
    after = prune_to(before, tmp_path / "out", **SIZES)
    old, new = document(before, "config.json"), document(after, "config.json")
    sizes = {"vocab_size": 320, "intermediate_size": 32}
    assert new == {**old, **sizes}  # bos 1 and eos 2 are specials at the front, so their ids stay
    assert load(after).config.some_key == {"a": [1]}


def test_both_loaders_take_it_and_it_generates(tmp_path: Path) -> None:
    after = prune_to(checkpoints.write_checkpoint(tmp_path / "m", bos=True), tmp_path / "out", **SIZES)
    tokenizer = AutoTokenizer.from_pretrained(after, local_files_only=True)
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    out = load(after).generate(input_ids=batch["input_ids"], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert out.shape[1] <= batch["input_ids"].shape[1] + 5
    assert out.max() < 320


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    before = checkpoints.write_checkpoint(tmp_path / "m", shards=2)
    first, again = (prune_to(before, tmp_path / name / "out", **SIZES) for name in ("a", "b"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name


def test_licences_travel_with_the_weights(tmp_path: Path) -> None:
    before = checkpoints.write_checkpoint(tmp_path / "m")
    for name in ("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "README.md", "pytorch_model.bin"):
        (before / name).write_text(name)
    after = prune_to(before, tmp_path / "out", **SIZES)
    for name in ("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md"):
        assert (after / name).read_text() == name
    assert not (after / "pytorch_model.bin").exists()


def test_a_stored_output_matrix_that_is_tied_is_written_once(tmp_path: Path) -> None:
    before = checkpoints.write_checkpoint(tmp_path / "m")
    weights = load_file(before / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, before / "model.safetensors", metadata={"format": "pt"})
    after = prune_to(before, tmp_path / "out", **SIZES)
    assert "lm_head.weight" not in read_index(after)
    model = load(after)
    assert model.lm_head.weight is model.model.embed_tokens.weight


# --- tensors that a plan replaces -------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    return open_directory(checkpoints.write_checkpoint(tmp_path / "m"), name="m", origin="m")


NAME = "model.layers.1.mlp.down_proj.weight"


def updated(source: ModelSource, scratch: Path, tensors: dict[str, torch.Tensor]) -> tuple[PrunePlan, Path]:
    file = scratch / "updates.safetensors"
    save_file(tensors, file)
    plan = plan_for(source.directory, scratch, **SIZES)
    return replace(plan, updates_sha256=hashlib.sha256(file.read_bytes()).hexdigest()), file


def test_a_plan_may_replace_tensors(source: ModelSource, tmp_path: Path) -> None:
    value = torch.full((64, 32), 0.5, dtype=torch.bfloat16)
    plan, file = updated(source, tmp_path, {NAME: value})
    with publish(tmp_path / "out") as work:
        prune(source, plan, work, updates=file)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(weights[NAME], value)
    assert (tmp_path / "out" / "updates.safetensors").read_bytes() == file.read_bytes()
    assert read_plan(tmp_path / "out" / "plan.json") == plan


def test_replaced_tensors_that_do_not_fit_are_refused(source: ModelSource, tmp_path: Path) -> None:
    good = torch.zeros((64, 32), dtype=torch.bfloat16)
    plan, file = updated(source, tmp_path, {NAME: good})
    cases = {
        "another hash": (replace(plan, updates_sha256="0" * 64), file),
        "not there": (plan, tmp_path / "nowhere"),
        "not given": (plan, None),
    }
    for tensors in (
        {NAME: torch.zeros((64, 96), dtype=torch.bfloat16)},
        {NAME: torch.zeros((64, 32))},
        {"model.layers.9.mlp.down_proj.weight": good},
    ):
        scratch = tmp_path / str(len(cases))
        scratch.mkdir()
        cases[str(len(cases))] = updated(source, scratch, tensors)
    for name, (changed, updates) in cases.items():
        with pytest.raises(PlanMismatchError), publish(tmp_path / "out") as work:
            prune(source, changed, work, updates=updates)
        assert not (tmp_path / "out").exists(), name


def test_a_plan_without_the_specials_is_refused(source: ModelSource, tmp_path: Path) -> None:
    plan = plan_for(source.directory, tmp_path, **SIZES)
    without = replace(plan, kept_token_ids=[i for i in plan.kept_token_ids if i != 2])
    with pytest.raises(DamagedFileError, match="eos_token_id: no token has id 2"), publish(tmp_path / "out") as work:
        prune(source, without, work)


# --- the writer of shards ---------------------------------------------------------------------------------------------


def test_shards_are_read_by_the_reference_library(tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.randn(n, 5) for n in range(1, 7)} | {"empty": torch.zeros(0, 3), "scalar": torch.ones(())}
    specs = [TensorSpec(name, "F32", tuple(t.shape)) for name, t in tensors.items()]
    total = write_checkpoint(tmp_path, specs, lambda spec: tensors[spec.name], max_shard_bytes=200)
    index = document(tmp_path, "model.safetensors.index.json")
    assert total == index["metadata"]["total_size"] == sum(4 * t.numel() for t in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    for file in files:
        raw = (tmp_path / file).read_bytes()
        assert int.from_bytes(raw[:8], "little") % 8 == 0
        data = len(raw) - 8 - int.from_bytes(raw[:8], "little")
        assert data <= 200


def test_a_tensor_of_another_size_than_promised(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="has 48 bytes, expected 24"):
        write_checkpoint(tmp_path, [TensorSpec("a", "F32", (2, 3))], lambda spec: torch.zeros(4, 3))


def test_sizes_of_a_tensor() -> None:
    assert TensorRef("w", "BF16", (3, 5), Path(), 0).n_bytes == 30
    assert TensorRef("w", "F32", (), Path(), 0).n_elements == 1


# --- memory -----------------------------------------------------------------------------------------------------------

_APPLY = """
import sys, threading
from pathlib import Path
import torch  # its own memory is not that of the work
from compact.pruning.apply import prune
from compact.pruning.plan import read_plan
from compact.sources.model_source import open_directory
from compact.base.files import publish

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024

peak = 0
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())

threading.Thread(target=watch, daemon=True).start()
model, plan, out = map(Path, sys.argv[1:])
source = open_directory(model, name="m", origin="m")
before = anonymous()
with publish(out) as work:
    prune(source, read_plan(plan), work)
done.set()
sizes = [ref.n_bytes for ref in source.tensors.values()]
print(before, peak, max(sizes), sum(sizes))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_applying_a_plan_needs_the_memory_of_its_largest_tensor(tmp_path: Path) -> None:
    """On a checkpoint of 300 MB: at most 500 MB and two largest tensors in all, and no more than that for the work."""
    config = checkpoints.model_config(
        "llama", 424, hidden_size=1024, intermediate_size=4096, num_hidden_layers=9, num_attention_heads=16
    )
    changes = {key: value for key, value in config.items() if key not in {"vocab_size", "architectures", "model_type"}}
    model = checkpoints.write_checkpoint(tmp_path / "m", weights={"none": torch.zeros(1)}, **changes)
    shapes = expected_shapes(FAMILIES[0], document(model, "config.json"), 10**6, "test")
    write_zeros(model / "model.safetensors", shapes)
    plan = plan_for(model, tmp_path, vocab_size=320, intermediate_size=2048, method="random")
    plan.write(tmp_path / "plan.json")
    done = subprocess.run(
        [sys.executable, "-c", _APPLY, str(model), str(tmp_path / "plan.json"), str(tmp_path / "out")],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    before, peak, largest, total = map(int, done.stdout.split())
    assert total > 250e6
    assert peak <= 2 * largest + 500e6
    assert peak - before <= 2 * largest + 32e6, "what the work adds"
    assert read_index(tmp_path / "out")["model.layers.8.mlp.gate_proj.weight"].shape == (2048, 1024)


def write_zeros(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of float16 zeros whose data are a hole in the file."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
