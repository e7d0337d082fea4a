"""Layer by layer against the whole model: the same activations for every family, in the memory of a few layers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from compact.base.cache import Cache
from compact.base.errors import DamagedFileError, DiskFullError
from compact.forward.layerwise import LayerStream
from compact.pruning.importance import collect_scores
from compact.repair.gram import Gram
from compact.sources.model_source import open_source
from tests.checkpoints import copy_checkpoint, random_model, write_checkpoint
from tests.compact.multimodal_models import write_multimodal
from tests.family_models import CASE_NAMES, CASES, VARIANTS

Activations = dict[tuple[int, int], torch.Tensor]

# Longer than every window of the models, in lengths that cannot all be one batch.
SEQUENCES = [[(7 * s + 13 * p * p + 3 * p) % 400 for p in range(60)] for s in range(3)] + [
    [5 * p % 400 for p in range(37)]
]


class Keep:
    """Keeps everything that it is shown."""

    def __init__(self) -> None:
        self.seen: Activations = {}
        self.calls: list[tuple[str, int]] = []

    def begin(self, layer: int) -> None:
        self.calls.append(("begin", layer))

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        self.seen[layer, batch] = activations.clone()

    def end(self, layer: int) -> None:
        self.calls.append(("end", layer))


def whole_model(directory: Path, batches: Sequence[torch.Tensor], dtype: torch.dtype = torch.float32) -> Activations:
    """What Transformers gives `down_proj`, from a model that is in memory whole."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True).eval()
    found: Activations = {}
    for number, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _module, inputs, number=number: now.__setitem__(number, inputs[0].reshape(-1, inputs[0].shape[-1]))
        )
    for index, ids in enumerate(batches):
        now: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            model(input_ids=ids)
        found |= {(number, index): value for number, value in now.items()}
    return found


def stream_of(directory: Path, **options: Any) -> tuple[LayerStream, Keep]:
    stream = LayerStream(directory, SEQUENCES, **{"device": "cpu", "batch_size": 2, **options})
    keep = Keep()
    stream.run(keep)
    return stream, keep


def assert_equal(found: Activations, expected: Activations) -> None:
    """Squares agree to 1e-5 of the layer's largest."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        squares = value.double().square()
        assert (found[key].double().square() - squares).abs().max() <= 1e-5 * squares.max(), key


@pytest.mark.parametrize(("architecture", "variant"), CASES, ids=CASE_NAMES)
def test_every_family_computes_what_the_whole_model_does(tmp_path: Path, architecture: str, variant: str) -> None:
    directory = random_model(tmp_path / "m", architecture, **VARIANTS[architecture][variant])
    stream, keep = stream_of(directory)
    assert [tuple(ids.shape) for ids in stream.batches] == [(2, 60), (1, 60), (1, 37)]
    assert_equal(keep.seen, whole_model(directory, stream.batches))
    assert keep.calls == [(what, layer) for layer in range(stream.n_layers) for what in ("begin", "end")]


def test_the_language_model_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    from transformers import Gemma3ForConditionalGeneration

    model = write_multimodal(tmp_path / "gemma")
    source = open_source(str(model), Cache(tmp_path / "cache", [], []))
    stream, keep = stream_of(source.directory)
    whole: Any = Gemma3ForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    found: list[torch.Tensor] = []
    whole.model.language_model.layers[-1].mlp.down_proj.register_forward_pre_hook(
        lambda _module, inputs: found.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
    )
    with torch.no_grad():
        whole(input_ids=stream.batches[0])
    assert_equal({(6, 0): keep.seen[6, 0]}, {(6, 0): found[0]})


# Of Gemma 4 a per-layer embedding's vectors and shared keys and values are kept too.
GEMMAS = ("Gemma3ForCausalLM", "Gemma4ForCausalLM")


@pytest.mark.parametrize("architecture", GEMMAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_states_in_a_file_are_the_same(tmp_path: Path, dtype: str, architecture: str) -> None:
    directory = random_model(tmp_path / "m", architecture)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    memory = stream_of(directory, dtype=dtype)[1].seen
    file = stream_of(directory, dtype=dtype, state_bytes=0, scratch=scratch)[1].seen
    assert memory.keys() == file.keys()
    assert all(torch.equal(memory[key], file[key]) for key in memory)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("architecture", GEMMAS)
def test_a_second_run_sees_the_same(tmp_path: Path, architecture: str) -> None:
    """Gemma scales its embeddings by a number that no file holds."""
    stream, first = stream_of(random_model(tmp_path / "m", architecture))
    again = Keep()
    stream.run(again)
    assert all(torch.equal(first.seen[key], again.seen[key]) for key in first.seen)


def test_a_full_disk_is_an_error_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = random_model(tmp_path / "m", "LlamaForCausalLM")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(DiskFullError):
        stream_of(directory, state_bytes=0, scratch=tmp_path)


def test_sums_of_bfloat16_activations_are_not_rounded_to_it(tmp_path: Path) -> None:
    """A running sum in bfloat16 stops growing after a few hundred positions."""
    directory = random_model(tmp_path / "m", "Qwen2ForCausalLM", dtype=torch.bfloat16)
    sequences = SEQUENCES[:3] * 10
    scores = collect_scores(directory, sequences, [0] * 500, (500,), device="cpu", dtype="bfloat16", batch_size=5)
    batches = [torch.tensor(sequences[at : at + 5]) for at in range(0, 30, 5)]
    seen = whole_model(directory, batches, torch.bfloat16)
    for layer, found in enumerate(scores.at(500)):
        all_rows = torch.cat([seen[layer, batch] for batch in range(6)])
        expected = all_rows.double().square().sum(0).numpy()
        assert np.abs(found - expected).max() <= 1e-5 * expected.max()


def test_the_same_channels_lead_in_bfloat16(tmp_path: Path) -> None:
    directory = random_model(tmp_path / "m", "LlamaForCausalLM")
    wide, half = (
        collect_scores(directory, SEQUENCES, [0] * 500, (500,), device="cpu", dtype=dtype).at(500)
        for dtype in ("float32", "bfloat16")
    )
    for a, b in zip(wide, half, strict=True):
        assert len(set(np.argsort(-a)[:48]) & set(np.argsort(-b)[:48])) >= 44


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_cuda_scores_are_the_cpu_s(tmp_path: Path, architecture: str) -> None:
    directory = random_model(tmp_path / "m", architecture)
    cpu, cuda = (
        collect_scores(directory, SEQUENCES, [0] * 500, (500,), device=device, dtype="float32").at(500)
        for device in ("cpu", "cuda")
    )
    assert (np.abs(cuda - cpu) / cpu.max(axis=1, keepdims=True)).max() <= 1e-5


@pytest.mark.parametrize(("size", "dtype"), [(96, torch.float32), (1100, torch.float32), (700, torch.bfloat16)])
def test_a_gram_matrix(size: int, dtype: torch.dtype) -> None:
    """More positions than a block has, in uneven parts; sizes on both sides of a block's columns."""
    torch.manual_seed(0)
    x = (torch.randn(2500, size) * torch.rand(size).exp()).to(dtype)
    gram = Gram(size)
    for start, stop in ((0, 1), (1, 1025), (1025, 1325), (1325, 2500)):
        gram.add(x[start:stop])
    value = gram.value()
    expected = x.double().T @ x.double()
    scale = expected.diagonal().sqrt()
    assert value.dtype == torch.float64
    assert torch.equal(value, value.T)
    assert ((value - expected).abs() / (scale[:, None] * scale)).max() < 1e-6


def test_a_gram_matrix_of_nothing() -> None:
    assert torch.equal(Gram(7).value(), torch.zeros(7, 7, dtype=torch.float64))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"intermediate_size": 64}, {"mlp_bias": True}])
def test_a_checkpoint_of_other_sizes_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    model = copy_checkpoint(random_model(tmp_path / "m", "LlamaForCausalLM"), tmp_path / "other", **change)
    with pytest.raises(DamagedFileError, match=r"tensor 'model\.layers\.\d\.mlp.* expected|model\.layers\.2"):
        stream_of(model)


@pytest.mark.parametrize("change", [{"rope_scaling": {"rope_type": "new"}}, {"hidden_size": "a"}])
def test_a_configuration_that_transformers_refuses(tmp_path: Path, change: dict[str, Any]) -> None:
    model = copy_checkpoint(random_model(tmp_path / "m", "LlamaForCausalLM"), tmp_path / "other", **change)
    with pytest.raises(DamagedFileError, match="Transformers cannot load"):
        stream_of(model)


def _rss_anon() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


class Peak:
    def __init__(self) -> None:
        self.bytes = _rss_anon()

    def begin(self, layer: int) -> None:
        self.bytes = max(self.bytes, _rss_anon())

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        self.bytes = max(self.bytes, _rss_anon())

    def end(self, layer: int) -> None:
        self.bytes = max(self.bytes, _rss_anon())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_is_that_of_a_few_layers(tmp_path: Path) -> None:
    """14 layers of 12.6 MB in float32, stored in bfloat16 so that they cannot be used where they are mapped."""
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 4096, "num_hidden_layers": 14, "head_dim": 16}
    model = write_checkpoint(tmp_path / "m", dtype=torch.bfloat16, **sizes)
    layer = 3 * 256 * 4096 * 4
    stream = LayerStream(model, SEQUENCES, device="cpu", dtype="float32")
    before, peak = _rss_anon(), Peak()
    stream.run(peak)
    assert peak.bytes - before < 4 * layer
