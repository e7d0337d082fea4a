"""Repair fits `down_proj` to its original output: as numpy's least squares does, never for the worse, and byte for byte
the same again."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from compact.base.cache import Cache
from compact.base.errors import CalibrationError
from compact.base.files import publish
from compact.calibration.calibration_set import HeldOut
from compact.decide import Decision, decide
from compact.forward.evaluate import Evaluation
from compact.pruning.apply import prune
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.plan import UPDATES, read_plan
from compact.repair import run as repairing
from compact.repair.fit import RIDGES, choose
from compact.repair.least_squares import NormalEquations, output_error
from compact.repair.run import repair_texts
from compact.sources.model_source import ModelSource, open_directory, open_source
from tests.checkpoints import TEXTS, random_model
from tests.engine_standins import Recorder
from tests.family_models import CASE_NAMES, CASES
from tests.processes import finish, pair

SIZES = {"vocab_size": 380, "intermediate_size": 64}


def correlated(n: int, size: int, seed: int) -> torch.Tensor:
    """Positions whose channels can be told from each other, as those of a network can."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size // 2, size, generator=torch.Generator().manual_seed(9))
    return torch.randn(n, size // 2, generator=generator) @ mix + 0.3 * torch.randn(n, size, generator=generator)


# --- the algebra ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.001, 0.1, 10.0])
def test_solutions_are_those_of_numpy(ridge: float) -> None:
    """Against least squares over the positions and, under them, one row a channel for the ridge."""
    x = correlated(200, 24, 0).double()
    weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = [0, 3, 4, 7, 8, 9, 15, 16, 21, 23]
    inputs, outputs = x[:, kept].numpy(), (x @ weight.T).numpy()
    penalty = np.sqrt(ridge * np.mean(np.square(inputs).sum(axis=0)))
    stacked = np.vstack([inputs, penalty * np.eye(len(kept))])
    expected = np.linalg.lstsq(stacked, np.vstack([outputs, penalty * weight[:, kept].T.numpy()]), rcond=None)[0].T
    [(used, found)] = NormalEquations.of(x.T @ x, weight, kept).solutions([ridge])
    assert used == ridge
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-10)
    error = np.square(outputs - inputs @ found.T.numpy()).sum()
    assert output_error(x.float(), torch.from_numpy(outputs), found, kept) == pytest.approx(error, rel=1e-5)


def test_channels_that_never_fire_leave_nothing_to_solve() -> None:
    weight = torch.ones(2, 4, dtype=torch.float64)
    equations = NormalEquations.of(torch.zeros(4, 4, dtype=torch.float64), weight, [0, 1])
    assert list(equations.solutions([0.1, 1.0])) == []


def test_the_ridge_is_chosen_on_what_was_not_fitted() -> None:
    weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(1))
    kept = list(range(16))
    fitted, same, other = correlated(400, 24, 0).double(), correlated(100, 24, 2), torch.zeros(100, 24)
    other[:, 16:] = 0  # only channels that stay, each alone: what the original columns map exactly
    other[torch.arange(100), torch.arange(100) % 16] = 1.0
    gram, wide = fitted.T @ fitted, weight.double()
    ridge, error, found = choose(NormalEquations.of(gram, wide, kept), [same], weight, kept)
    assert ridge in RIDGES[:4]
    assert error < 0.5
    assert (found.dtype, found.shape) == (weight.dtype, (10, 16))
    ridge, error, found = choose(NormalEquations.of(gram, wide, kept), [other], weight, kept)
    assert (ridge, error) == (None, 1.0)
    assert torch.equal(found, weight[:, kept])


# --- a model ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"{n} {text}" for n in range(40) for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    directory = random_model(tmp_path_factory.mktemp("repair") / "m", "LlamaForCausalLM")
    return open_directory(directory, name="m", origin="m")


def asked(text: Path, **changes: Any) -> PruneOptions:
    values = {"method": "repair", "calibration": (str(text),), "calibration_tokens": 3000, "sequence_length": 64}
    return PruneOptions(**{**SIZES, **values, "device": "cpu", **changes})


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a model too large to be loaded whole: random weights predict nothing, so bits per byte say nothing."""
    monkeypatch.setattr(repairing, "fits_in_memory", lambda *_: False)


def test_what_memory_does_not_hold_is_written_unjudged_and_said(
    source: ModelSource, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of what is free stays so: the model, and beside it the embedding and FFN that the plan cuts out."""
    plan = decide(Context(source, asked(text, method="compact"), Cache(tmp_path / "plain", [], []))).plan
    with publish(tmp_path / "cut") as work:
        prune(source, plan, work)
    whole, cut = (load_file(folder / "model.safetensors") for folder in (source.directory, tmp_path / "cut"))
    copied = [name for name in cut if "mlp." in name or "embed_tokens" in name or "lm_head" in name]
    needed = 4 * (sum(t.numel() for t in whole.values()) + sum(cut[name].numel() for name in copied))
    for free, judged in ((int(needed / 0.8) + 8, True), (int(needed / 0.8) - 8, False)):
        monkeypatch.setattr("compact.repair.check.free_memory", lambda _, free=free: free)
        watcher = Recorder()
        decision = decide(Context(source, asked(text), Cache(tmp_path / str(free), [], []), watcher))
        assert decision.plan.repair is not None
        assert bool(decision.plan.repair["bits_per_byte"]) == judged
        assert any("without an evaluation" in note for note in watcher.notes) != judged


def applied(source: ModelSource, decision: Decision, out: Path) -> Path:
    with publish(out) as work:
        prune(source, decision.plan, work, updates=decision.updates)
    return out


@pytest.mark.usefixtures("unjudged")
@pytest.mark.parametrize("tokens", ["final", "common"])
def test_the_weights_are_least_squares_of_the_original_model(
    source: ModelSource, text: Path, tmp_path: Path, tokens: str
) -> None:
    """Against numpy, on activations that Transformers gives for the text as either tokenizer cuts it."""
    options = asked(text, repair_tokens=tokens)
    cache = Cache(tmp_path / "cache", [], [])
    decision = decide(Context(source, options, cache))
    plan = decision.plan
    assert plan.method == "repair"
    assert plan.repair is not None
    assert max(plan.repair["held_out_error"]) < 1
    out = applied(source, decision, tmp_path / "out")
    after = load_file(out / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(source.directory, dtype=torch.float32)
    seen: list[list[torch.Tensor]] = [[], []]
    for layer in (0, 1):
        model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(
            lambda _m, inputs, layer=layer: seen[layer].append(inputs[0][0])
        )
    texts = repair_texts(calibration_for(Context(source, options, Cache(tmp_path / "texts", [], [])))).fitted
    tokenizer = AutoTokenizer.from_pretrained(out if tokens == "final" else source.directory)
    ids = [i for part in texts for i in tokenizer(part)["input_ids"]]
    ids = [plan.kept_token_ids[i] for i in ids] if tokens == "final" else ids
    stays = np.isin(ids, plan.kept_token_ids)
    assert stays.all() == (tokens == "final")
    assert len(ids) == plan.repair["tokens"]
    with torch.no_grad():
        for start in range(0, len(ids), 64):
            model(torch.tensor([ids[start : start + 64]]))
    for layer in (0, 1):
        x = torch.cat(seen[layer]).double().numpy()[stays]
        weight = model.model.layers[layer].mlp.down_proj.weight.detach().double().numpy()
        kept, ridge = plan.kept_channels[layer], plan.repair["ridge"][layer]
        inputs, outputs = x[:, kept], x @ weight.T
        penalty = np.sqrt(ridge * np.mean(np.square(inputs).sum(axis=0)))
        stacked = np.vstack([inputs, penalty * np.eye(len(kept))])
        expected = np.linalg.lstsq(stacked, np.vstack([outputs, penalty * weight[:, kept].T]), rcond=None)[0].T
        found = after[f"model.layers.{layer}.mlp.down_proj.weight"].double().numpy()
        np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
        fitted, plain = (np.square(outputs - inputs @ w.T).sum() for w in (found, weight[:, kept]))
        assert fitted < plain


@pytest.mark.usefixtures("unjudged")
def test_equal_inputs_give_equal_bytes(source: ModelSource, text: Path, tmp_path: Path) -> None:
    first, again = (decide(Context(source, asked(text), Cache(tmp_path / name, [], []))) for name in ("a", "b"))
    assert first.plan == again.plan
    one, two = applied(source, first, tmp_path / "one"), applied(source, again, tmp_path / "two")
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    assert all(path.read_bytes() == (two / path.name).read_bytes() for path in one.iterdir())
    # What was published is enough to do it again.
    plan = read_plan(one / "plan.json")
    three = applied(source, Decision(plan, one / UPDATES), tmp_path / "three")
    assert all(path.read_bytes() == (three / path.name).read_bytes() for path in one.iterdir())


@pytest.mark.usefixtures("unjudged")
def test_the_cache_knows_what_a_repair_depends_on(source: ModelSource, text: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", [], [])
    first = decide(Context(source, asked(text), cache))
    assert decide(Context(source, asked(text), cache)) == first
    assert cache.misses == ["scores", "repair"]
    held = replace(
        calibration_for(Context(source, asked(text), Cache(tmp_path / "texts", [], []))),
        held_out=(HeldOut("other", TEXTS[0] * 9),),
    )
    for context in (
        Context(source, asked(text, seed=1), cache),
        Context(source, asked(text, dtype="bfloat16"), cache),
        Context(source, asked(text, repair_tokens="common"), cache),
        Context(source, asked(text), cache).with_value(calibration_for, held),
    ):
        assert decide(context).plan.id != first.plan.id
    assert cache.misses.count("repair") == 5


@pytest.mark.usefixtures("unjudged")
@pytest.mark.parametrize(("architecture", "variant"), CASES, ids=CASE_NAMES)
def test_every_family(architecture: str, variant: str, text: Path, tmp_path: Path) -> None:
    """The checkpoint differs from the plain cut in `down_proj` alone, and Transformers loads it."""
    from tests.family_models import VARIANTS

    directory = random_model(tmp_path / "m", architecture, torch.bfloat16, **VARIANTS[architecture][variant])
    source = open_directory(directory, name="m", origin="m")
    cache = Cache(tmp_path / "cache", [], [])
    options = asked(text, calibration_tokens=1500)
    repaired = applied(source, decide(Context(source, options, cache)), tmp_path / "repaired")
    plain = applied(source, decide(Context(source, replace(options, method="compact"), cache)), tmp_path / "plain")
    ours, theirs = load_file(repaired / "model.safetensors"), load_file(plain / "model.safetensors")
    changed = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert changed == {f"model.layers.{n}.mlp.down_proj.weight" for n in range(source.num_hidden_layers)}
    assert {name: (t.dtype, t.shape) for name, t in ours.items()} == {n: (t.dtype, t.shape) for n, t in theirs.items()}
    model = AutoModelForCausalLM.from_pretrained(repaired)
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


def test_sequences_of_a_batch_may_be_fitted_and_held_out(source: ModelSource, text: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repairing, "fits_in_memory", lambda *_: False)
        one, many = (
            decide(Context(source, asked(text, batch_size=size), Cache(tmp_path / str(size), [], [])))
            for size in (1, 7)
        )
    assert one.updates is not None
    assert many.updates is not None
    for name, tensor in load_file(one.updates).items():
        torch.testing.assert_close(load_file(many.updates)[name], tensor, atol=1e-4, rtol=1e-3)


# --- the check --------------------------------------------------------------------------------------------------------


def test_a_real_model_is_repaired_where_that_helps_and_never_for_the_worse(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", [], [])
    tiny = open_source("tiny", cache)
    options = PruneOptions(intermediate_size=320, method="repair", device="cpu", calibration_tokens=3000)
    decision = decide(Context(tiny, options, cache))
    report = decision.plan.repair
    assert report is not None
    assert report["share"] == 1.0
    assert decision.updates is not None
    for bits in report["bits_per_byte"].values():
        assert bits["repaired"] < bits["plain"]


def test_what_is_worse_on_a_held_out_text_is_not_kept(
    source: ModelSource, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge's bits per byte are set: worse with the whole change, then worse with any."""
    calls: list[str] = []
    worse = {"after all": {"a": 3.0, "b": 2.1}, "after half": {"a": 2.9, "b": 1.9}}

    def found(*_: Any, **__: Any) -> dict[str, Evaluation]:
        calls.append("asked")
        bits = [{"a": 3.0, "b": 2.0}, worse["after all"], worse["after half"]][len(calls) - 1]
        return {name: Evaluation(value, 1, 1, 1, 2, "") for name, value in bits.items()}

    monkeypatch.setattr("compact.calibration.held_out.TokenizedTexts.evaluate", found)
    halved = decide(Context(source, asked(text), Cache(tmp_path / "half", [], [])))
    assert halved.plan.repair is not None
    assert halved.plan.repair["share"] == 0.5
    assert halved.updates is not None
    plain = load_file(applied(source, replace(halved, plan=replace(halved.plan, updates_sha256=None), updates=None),
                              tmp_path / "plain") / "model.safetensors")  # fmt: skip
    calls.clear()
    worse["after half"] = {"a": 3.1, "b": 1.9}
    dropped = decide(Context(source, asked(text), Cache(tmp_path / "none", [], [])))
    assert dropped.plan.repair is not None
    assert (dropped.plan.repair["share"], dropped.updates, dropped.plan.updates_sha256) == (0.0, None, None)
    monkeypatch.setattr(repairing, "fits_in_memory", lambda *_: False)
    whole = decide(Context(source, asked(text), Cache(tmp_path / "whole", [], [])))
    assert whole.updates is not None
    for name, tensor in load_file(halved.updates).items():
        torch.testing.assert_close(tensor, (plain[name] + load_file(whole.updates)[name]) / 2)


def test_nothing_is_repaired_where_no_channel_goes(source: ModelSource, text: Path, tmp_path: Path) -> None:
    decision = decide(Context(source, asked(text, intermediate_size=96), Cache(tmp_path / "cache", [], [])))
    assert decision.updates is None
    assert decision.plan.repair == {"share": 0.0, "why": "every channel is kept"}


def test_too_little_text_is_refused(source: ModelSource, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("xqzjvkwxqzjvkwbpx", encoding="utf-8")
    with pytest.raises(CalibrationError, match="too few"):
        decide(Context(source, asked(short, calibration_tokens=16), Cache(tmp_path / "cache", [], [])))


@pytest.mark.slow
def test_two_processes_repair_as_one(source: ModelSource, text: Path, tmp_path: Path) -> None:
    """Each takes a share of the text; what is written differs in the order of a sum at most."""
    program = (
        "import json, sys; from pathlib import Path; from compact.repair import run as repair\n"
        "from compact.base.cache import Cache; from compact.pruning.context import Context\n"
        "from compact.decide import decide; from compact.base.distributed import joined\n"
        "from compact.pruning.options import PruneOptions; from compact.sources.model_source import open_directory\n"
        "repair.fits_in_memory = lambda *_: False\n"
        "with joined():\n"
        "    source = open_directory(Path(sys.argv[1]), name='m', origin='m')\n"
        "    options = PruneOptions(**json.loads(sys.argv[3]))\n"
        "    decision = decide(Context(source, options, Cache(Path(sys.argv[2]), [], [])))\n"
        "    print(json.dumps([decision.plan.id, str(decision.updates)]))\n"
    )
    options = {**SIZES, "method": "repair", "calibration": (str(text),), "calibration_tokens": 3000, "device": "cpu"}
    options["sequence_length"] = 64
    arguments = [sys.executable, "-c", program, str(source.directory), str(tmp_path / "two"), json.dumps(options)]
    answers = []
    for code, out, errors in finish(pair(arguments)):
        assert code == 0, errors
        answers.append(json.loads(out))
    assert answers[0] == answers[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repairing, "fits_in_memory", lambda *_: False)
        alone = decide(Context(source, asked(text), Cache(tmp_path / "one", [], [])))
    assert alone.updates is not None
    shared = load_file(answers[0][1])
    for name, tensor in load_file(alone.updates).items():
        torch.testing.assert_close(shared[name], tensor, atol=1e-5, rtol=1e-4)
