"""Sequences that share a beginning are scored as each one alone is, by every family's attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from compact.forward.load import load_model
from compact_edge.tasks import checkpoint as task_checkpoint
from compact_edge.tasks.checkpoint import CheckpointRuntime
from exporters.gguf.tasks import GgufRuntime
from exporters.gguf_writer.write import write_gguf
from exporters.native.prefix_groups import Branch, Group, grouped, pack, unpack
from exporters.task_runtime import Runtime, packs
from tests.exporters.family_checkpoints import checkpoint, every_case

BRANCHES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=12).map(
    lambda rows: [Branch(tuple(row), (tuple(row[-1:]), tuple(row[-len(row) // 2 :]))) for row in rows]
)


@given(BRANCHES, st.integers(1, 5), st.integers(1, 80))
def test_groups_hold_every_sequence_once_and_whole(sequences: list[Branch], most: int, tokens: int) -> None:
    found: dict[int, Branch] = {}
    for group, indices in grouped(sequences, max_branches=most, max_tokens=tokens):
        assert 1 <= len(group.branches) <= most
        assert len(group.branches) == 1 or group.n_tokens <= tokens
        for index, branch in zip(indices, group.branches, strict=True):
            assert index not in found
            found[index] = Branch(group.prefix + branch.ids, branch.targets)
            assert branch.first >= 0  # all positions that are asked for come after the shared ones
    assert [found[index] for index in range(len(sequences))] == sequences


@given(BRANCHES, st.integers(1, 9), st.integers(1, 80))
def test_packs_hold_every_group_once(sequences: list[Branch], most: int, tokens: int) -> None:
    groups = [group for group, _ in grouped(sequences, max_branches=4, max_tokens=60)]
    assert unpack(*pack(groups)) == groups
    found = list(packs(groups, max_branches=most, max_tokens=tokens))
    assert sorted(index for part in found for index in part) == list(range(len(groups)))
    for part in found:
        assert len(part) == 1 or sum(len(groups[index].branches) for index in part) <= most
        assert len({bool(groups[index].prefix) for index in part}) == 1


def sequences(seed: int) -> list[Branch]:
    """Questions of unlike lengths, each with answers of unlike lengths, and one text alone."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (count,), generator=generator).tolist())

    made = [Branch(text[:-1], (text[-12:],)) for text in [draw(75)]]
    for length, answers in ((90, (3, 17, 1)), (40, (8, 2)), (61, (5, 5, 5, 5))):
        question = draw(length)
        for answer in answers:
            text = question + draw(answer)
            made.append(Branch(text[:-1], (text[-answer:], text[-1:])))
    return made


def scores(runtime: Runtime, rows: Sequence[Branch]) -> list[float]:
    groups = list(grouped(rows, max_branches=16, max_tokens=2048))
    assert sum(bool(group.prefix) for group, _ in groups) == 3
    results = runtime.score([group for group, _ in groups], lambda _: None)
    found: dict[tuple[int, int], float] = {}
    for (_, indices), scored in zip(groups, results, strict=True):
        for index, values in zip(indices, scored, strict=True):
            found.update({(index, t): value.log_probability for t, value in enumerate(values)})
    return [found[key] for key in sorted(found)]


@every_case
def test_shared_beginnings_change_no_score(
    tmp_path: Path, architecture: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "m", architecture, variant, torch.float32)
    rows = sequences(7)
    model = load_model(source)
    expected = []
    with torch.inference_mode():
        for branch in rows:
            logits = model(input_ids=torch.tensor([branch.ids])).logits[0].double().log_softmax(dim=-1)
            for target in branch.targets:
                places = range(len(branch.ids) - len(target), len(branch.ids))
                expected.append(sum(float(logits[i, token]) for i, token in zip(places, target, strict=True)))
    runtime = CheckpointRuntime(source, device="cpu", batch_size=16)
    assert scores(runtime, rows) == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr(task_checkpoint, "_LOGITS_BYTES", 20_000)  # a dozen rows of logits at a time
    assert scores(runtime, rows) == pytest.approx(expected, abs=1e-3)
    write_gguf(source, tmp_path / "m.gguf", "F32")
    llama = GgufRuntime(tmp_path / "m.gguf", threads=1)
    try:
        # Sums over up to 17 tokens. llama.cpp reads GELU from a float16 table, which Gemma 4 does twice in a layer.
        most = 3e-2 if architecture == "Gemma4ForCausalLM" else 5e-3
        assert scores(llama, rows) == pytest.approx(expected, abs=most)
    finally:
        llama.close()


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self.elements = max(self.elements, value.numel())
        return made


def test_the_logits_of_a_long_text_are_never_there_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "m", "LlamaForCausalLM", "tied", torch.float32, padding=20_000)
    runtime = CheckpointRuntime(source, device="cpu")
    vocab_size = runtime._model.config.vocab_size
    text = tuple(range(3, 203))
    group = Group((), (Branch(text[:-1], (text[1:],)),))
    monkeypatch.setattr(task_checkpoint, "_LOGITS_BYTES", 16 * 4 * vocab_size)
    with LargestTensor() as largest:
        (((score,),),) = runtime.score([group], lambda _: None)
    with torch.inference_mode():
        rows = load_model(source)(input_ids=torch.tensor([text[:-1]])).logits[0].log_softmax(dim=-1)
    assert score.log_probability == pytest.approx(float(rows.gather(1, torch.tensor([text[1:]]).T).sum()), rel=1e-5)
    # 16 rows of the 199; the head's own matrix is its size times the vocabulary.
    assert largest.elements <= max(16, runtime._model.config.hidden_size) * vocab_size < 199 * vocab_size


def test_a_group_that_fits_no_engine_is_refused(tmp_path: Path) -> None:
    from compact.base.errors import UsageError
    from exporters.llamacpp.engine import LlamaEngine

    source = checkpoint(tmp_path / "m", "LlamaForCausalLM", "tied", torch.float32)
    write_gguf(source, tmp_path / "m.gguf", "F32")
    one = Branch((5, 6), ((7,),))
    with LlamaEngine(tmp_path / "m.gguf", n_ctx=8, n_seq=2) as engine:
        for group in (Group((1, 2, 3), (one, one, one)), Group(tuple(range(3, 9)), (one, one))):
            with pytest.raises(UsageError, match="exceed the limits"):
                engine.branches([group])
        with pytest.raises(UsageError, match="a token id is not between"):
            engine.branches([Group((), (Branch((5, 10**6), ((7,),)),))])
        ((values, same),) = engine.branches([Group((), (one, one))])
        assert values == same
