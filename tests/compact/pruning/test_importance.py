"""Common act² against a plain reading of the paper's equation: hooks on gate and up, and a set S."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import compact.pruning.importance
from compact.base.errors import DamagedFileError, EngineCrashedError, UsageError
from compact.forward.load import load_model
from compact.pruning.importance import Scores, bucket_of_ids, collect_scores, top_channels, vocabulary_grid
from compact.vocabulary.tokenizer import load_tokenizer
from compact.vocabulary.vocabulary import always_kept, kept_ids, rank_by_merges, read_vocabulary
from tests.checkpoints import TEXTS, write_checkpoint
from tests.compact.pruned_checkpoints import document

Array = np.ndarray[Any, np.dtype[np.float64]]


def reference(directory: Path, sequences: Sequence[Sequence[int]], dropped: set[int]) -> Array:
    """I_k = sum_i w_i (act(x_i W_gate) * (x_i W_up))_k ^ 2 in float64, w_i = 0 where token i is in `dropped`."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    layers = model.model.layers
    seen: dict[tuple[int, str], torch.Tensor] = {}

    def keep(layer: int, name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__((layer, name), output.detach())

    for n, layer in enumerate(layers):
        layer.mlp.gate_proj.register_forward_hook(keep(n, "gate"))
        layer.mlp.up_proj.register_forward_hook(keep(n, "up"))
    scores = np.zeros((len(layers), model.config.intermediate_size))
    for sequence in sequences:
        with torch.no_grad():
            model(input_ids=torch.tensor([list(sequence)]))
        weights = torch.tensor([0.0 if token in dropped else 1.0 for token in sequence], dtype=torch.float64)
        for n, layer in enumerate(layers):
            product = (layer.mlp.act_fn(seen[n, "gate"]) * seen[n, "up"])[0].double()
            scores[n] += (weights[:, None] * product**2).sum(0).numpy()
    return scores


def assert_close(scores: Array, expected: Array) -> None:
    """Agreement to 1e-6 of every layer's largest score."""
    assert scores.shape == expected.shape
    largest = expected.max(axis=1, keepdims=True)
    assert (np.abs(scores - expected) / largest).max() <= 1e-6


class Case:
    """A random model, its vocabulary ranked by merges, and sequences of real text."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.n_rows = document(directory, "config.json")["vocab_size"]
        self.vocabulary = read_vocabulary(document(directory), self.n_rows, "test")
        self.always = always_kept(self.vocabulary, (), ())
        self.order = rank_by_merges(self.vocabulary, self.always)
        tokenizer = load_tokenizer(directory)
        stream = [i for text in TEXTS for i in tokenizer(text)["input_ids"]]
        self.sequences = [stream[at : at + 48] for at in range(0, 288, 48)] + [stream[288:310]]

    def dropped(self, size: int) -> set[int]:
        return set(range(self.n_rows)) - set(kept_ids(self.vocabulary, self.always, self.order, size))

    def collect(self, edges: Sequence[int], **options: Any) -> Scores:
        buckets = bucket_of_ids(self.n_rows, self.always, self.order, edges)
        return collect_scores(self.directory, self.sequences, buckets, edges, device="cpu", **options)


@pytest.fixture(scope="module", params=[("llama", "silu"), ("qwen2", "gelu_pytorch_tanh")], ids=lambda p: p[0])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, activation = request.param
    out = tmp_path_factory.mktemp("importance") / "m"
    return Case(write_checkpoint(out, family, pre="qwen2", dtype=torch.float32, hidden_act=activation))


def test_one_pass_gives_the_exact_scores_of_every_size(case: Case) -> None:
    edges = vocabulary_grid(case.n_rows, len(case.always), 301)
    scores = case.collect(edges)
    assert scores.sums.dtype == np.float64
    assert scores.sums.shape == (2, len(edges) + 1, 96)
    results = []
    for size in (case.n_rows, edges[-3], 301, edges[0]):
        expected = reference(case.directory, case.sequences, case.dropped(size))
        assert_close(scores.at(size), expected)
        results.append(expected)
    # The sizes really differ: fewer tokens count at a smaller one.
    assert all((a.sum(1) > b.sum(1) * 1.001).all() for a, b in itertools.pairwise(results))


def test_the_batch_size_does_not_matter(case: Case) -> None:
    one, three = (case.collect((300, case.n_rows), batch_size=size) for size in (1, 3))
    for size in (300, case.n_rows):
        assert_close(three.at(size), one.at(size))


def test_activations_are_summed_in_double_precision(case: Case) -> None:
    """Many samples: a sum in the model's own precision would drift."""
    many = Case(case.directory)
    many.sequences = case.sequences * 12
    edges = (300, case.n_rows)
    assert_close(many.collect(edges, batch_size=8).at(300), 12 * case.collect(edges).at(300))


def test_dropped_tokens_do_not_vote(tmp_path: Path) -> None:
    """Rare tokens drive channels 0 to 31, the kept ones the others: common act² and plain act² choose differently."""
    from safetensors.torch import load_file, save_file

    case = Case(write_checkpoint(tmp_path / "m", dtype=torch.float32, num_hidden_layers=1))
    dropped = case.dropped(300)
    weights = load_file(case.directory / "model.safetensors")
    weights["model.layers.0.self_attn.o_proj.weight"].zero_()  # x_i is the token's own embedding
    embedding, layer = weights["model.embed_tokens.weight"], "model.layers.0.mlp."
    embedding.zero_()
    embedding[:, 0] = 1.0
    rare = torch.tensor(sorted(dropped))
    embedding[rare, 0] = 0.0
    embedding[rare, 1] = 1.0
    for name in ("gate_proj", "up_proj"):
        matrix = weights[f"{layer}{name}.weight"]
        matrix.zero_()
        matrix[:32, 1] = 4.0
        matrix[32:, 0] = 1.0
    save_file(weights, case.directory / "model.safetensors", metadata={"format": "pt"})
    kept = [i for i in range(case.n_rows) if i not in dropped][:20]
    case.sequences = [[*kept, *sorted(dropped)[:20]]]
    scores = case.collect((300, case.n_rows))
    assert top_channels(scores.at(case.n_rows), 32) == [list(range(32))]
    assert set(top_channels(scores.at(300), 64)[0]) == set(range(32, 96))
    assert_close(scores.at(300), reference(case.directory, case.sequences, dropped))


def test_a_size_that_was_not_collected_is_refused(case: Case) -> None:
    scores = Scores((300, 400), np.ones((2, 3, 4)))
    assert scores.at(300).sum() == 8
    assert scores.at(400).sum() == 16
    for size in (299, 301, 500):
        with pytest.raises(UsageError, match=f"--vocab-size {size}"):
            scores.at(size)


def test_every_id_is_in_the_bucket_of_the_first_size_that_keeps_it(case: Case) -> None:
    edges = vocabulary_grid(case.n_rows, len(case.always))
    buckets = bucket_of_ids(case.n_rows, case.always, case.order, edges)
    for number, size in enumerate(edges):
        kept = {i for i in range(case.n_rows) if buckets[i] <= number}
        assert kept == set(range(case.n_rows)) - case.dropped(size)


def test_the_best_channels_are_kept_and_ties_go_to_the_lower() -> None:
    scores = np.array([[1.0, 5.0, 5.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert top_channels(scores, 2) == [[1, 2], [0, 1]]
    assert top_channels(scores, 4)[0] == [0, 1, 2, 4]


def test_scores_are_read_back_exactly(tmp_path: Path) -> None:
    scores = Scores((10, 20), np.random.default_rng(0).random((2, 3, 5)))
    scores.save(tmp_path / "a.npz")
    again = Scores.load(tmp_path / "a.npz")
    assert again.edges == scores.edges
    assert (again.sums == scores.sums).all()


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "pickle", "another archive"])
def test_damaged_scores(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.npz"
    Scores((10, 20), np.random.default_rng(0).random((2, 3, 5))).save(path)
    data = bytearray(path.read_bytes())
    if damage == "another archive":
        np.savez(path, other=np.zeros(3))
    elif damage == "pickle":
        np.savez(path, edges=np.array([{}], dtype=object), sums=np.zeros(3))
    else:
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(bytes({"cut": data[:200], "flipped": data, "text": b"no archive"}[damage]))
    with pytest.raises(DamagedFileError, match=r"a\.npz: not a valid score file"):
        Scores.load(path)


def test_an_overflow_is_said(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    case = Case(write_checkpoint(tmp_path / "m", dtype=torch.float32))
    weights = load_file(case.directory / "model.safetensors")
    for name in ("gate", "up"):
        weights[f"model.layers.1.mlp.{name}_proj.weight"].fill_(6e4)
    save_file(weights, case.directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineCrashedError, match="overflow in float16"):
        case.collect((300,), dtype="float16")


def test_the_model_s_own_activations_are_not_touched() -> None:
    """Where activations are wide already, squaring them in place would change what the model computes next."""
    activations = torch.full((3, 4), 3.0, dtype=torch.float64)
    sums = torch.zeros((2, 4), dtype=torch.float64)
    compact.pruning.importance._add_squares(sums, activations, torch.tensor([0, 1, 1]))
    assert (activations == 3.0).all()
    assert sums.tolist() == [[9.0] * 4, [18.0] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_an_accelerator(dtype: torch.dtype) -> None:
    """What accelerators do instead of adding row by row agrees with float64 to 1e-6 of the largest sum."""
    torch.manual_seed(0)
    activations, buckets = torch.randn(1300, 40).to(dtype), torch.arange(1300) ** 2 % 7
    expected = torch.stack([activations[buckets == n].double().square().sum(0) for n in range(9)])
    for add in (compact.pruning.importance._add_squares, compact.pruning.importance._add_by_products):
        total = torch.zeros((9, 40), dtype=torch.float64)
        add(total, activations, buckets)
        assert (total - expected).abs().max() <= 1e-6 * expected.max()


def test_a_device_that_is_not_there(case: Case) -> None:
    with pytest.raises(UsageError, match="--device warp"):
        collect_scores(case.directory, case.sequences, [0] * case.n_rows, (case.n_rows,), device="warp")


_PEAK = """
import sys
from pathlib import Path
import torch
from compact.pruning.importance import collect_scores
torch.set_num_threads(1)
model, n = Path(sys.argv[1]), int(sys.argv[2])
sequences = [[(7 * s + 3 * p) % 300 for p in range(128)] for s in range(n)]
collect_scores(model, sequences[:2], [0] * 424, (424,), device="cpu")
collect_scores(model, sequences, [0] * 424, (424,), device="cpu")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """Keeping the activations would take 100 MB more: 24 samples, 2 layers, 128 positions of 4096 floats."""
    model = write_checkpoint(tmp_path / "m", dtype=torch.float32, intermediate_size=4096)
    assert document(model, "config.json")["vocab_size"] <= 424
    root = Path(compact.pruning.importance.__file__).parents[1]
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", _PEAK, str(model), str(n)],
                cwd=root,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for n in (4, 28)
    ]
    assert peaks[1] - peaks[0] < 40_000  # kB


def test_a_checkpoint_is_loaded_for_inference(case: Case) -> None:
    model = load_model(case.directory)
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32
