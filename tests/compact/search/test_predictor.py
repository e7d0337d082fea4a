"""Predicted losses of sizes agree with measured ones, on `tiny` and short texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from scipy.stats import spearmanr

from compact.base.cache import Cache
from compact.base.errors import CalibrationError
from compact.calibration.calibration_set import HeldOut
from compact.pruning.budget import Sizes
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.search.predictor import Predictor, other_texts
from compact.sources.model_source import ModelSource, open_directory, open_source
from tests.checkpoints import TEXTS, write_checkpoint

# Bytes of held-out text, and of code that the calibration does not contain.
BYTES = 3000
VOCABULARIES, WIDTHS = (5888, 11_264), (256, 384, 640)
WHOLE = Sizes(16_384, 1024)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patched:
        yield patched


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Context:
    cache = Cache(tmp_path_factory.mktemp("cache"), [], [])
    options = PruneOptions(calibration=("stdlib-prose",), calibration_tokens=4096, sequence_length=256, device="cpu")
    context = Context(open_source("tiny", cache), options, cache)
    drawn = calibration_for(context)
    (held_out,) = drawn.held_out
    short = (HeldOut(held_out.name, held_out.text[:BYTES]),)
    return context.with_value(calibration_for, replace(drawn, held_out=short))


@pytest.fixture(scope="module")
def predictor(tiny: Context, patch: pytest.MonkeyPatch) -> Predictor:
    patch.setattr("compact.search.predictor.TEXT_BYTES", BYTES)
    return Predictor(tiny)


@pytest.fixture(scope="module")
def measured(predictor: Predictor) -> dict[Sizes, tuple[float, float]]:
    """Sizes that were not probed: the loss on the texts by the evaluator, and the correction for other text."""
    probed = {probe.sizes for probe in predictor.probes}
    grid = [
        *(Sizes(vocab, width) for vocab in VOCABULARIES for width in WIDTHS),
        *(Sizes(vocab, WHOLE.intermediate_size) for vocab in VOCABULARIES),
        *(Sizes(WHOLE.vocab_size, width) for width in WIDTHS),
    ]
    found = {}
    before = predictor.evaluator.at(WHOLE).texts
    for sizes in grid:
        if sizes not in probed:
            texts = predictor.evaluator.at(sizes).texts
            loss = fmean(math.log(texts[name].bits_per_byte / before[name].bits_per_byte) for name in texts)
            found[sizes] = (loss, predictor.correction(sizes, texts))
    assert len(found) >= 8
    return found


@pytest.mark.slow
def test_five_cuts_are_measured(predictor: Predictor) -> None:
    """Two that only drop tokens, and two that only drop channels."""
    assert predictor.whole == WHOLE
    assert len(predictor.probes) == 5
    for probe in predictor.probes:
        tokens = probe.sizes.vocab_size < WHOLE.vocab_size
        assert tokens != (probe.sizes.intermediate_size < WHOLE.intermediate_size)
        assert (probe.extra_tokens > 0) == tokens
        assert (probe.energy_lost > 0) != tokens


@pytest.mark.slow
def test_predictions_agree_with_measurements(predictor: Predictor, measured: dict[Sizes, tuple[float, float]]) -> None:
    predicted = {sizes: predictor.loss(sizes) for sizes in measured}
    real = {sizes: loss + correction for sizes, (loss, correction) in measured.items()}
    for sizes, loss in real.items():
        assert predicted[sizes] == pytest.approx(loss, rel=0.25, abs=0.01), sizes
    assert spearmanr([predicted[s] for s in real], [real[s] for s in real]).statistic > 0.9
    # Also along each axis alone: the sizes with the same V', and those with the same I'.
    for same in ("vocab_size", "intermediate_size"):
        for value in {getattr(sizes, same) for sizes in real}:
            line = [sizes for sizes in real if getattr(sizes, same) == value]
            assert sorted(line, key=lambda s: predicted[s]) == sorted(line, key=lambda s: real[s])


@pytest.mark.slow
def test_text_of_the_calibrations_kind_flatters_a_cut_of_channels(
    predictor: Predictor, measured: dict[Sizes, tuple[float, float]]
) -> None:
    """So a measured loss is corrected upwards, and most where most was cut."""
    corrections = [measured[Sizes(WHOLE.vocab_size, width)][1] for width in WIDTHS]
    assert min(corrections) > 0
    assert corrections == sorted(corrections, reverse=True), "narrower ones come first"


@pytest.mark.slow
def test_a_loss_is_corrected_for_the_rare_tokens_that_the_texts_lack(predictor: Predictor) -> None:
    before = predictor.unpruned.texts
    for vocab in VOCABULARIES:
        sizes = Sizes(vocab, WHOLE.intermediate_size)
        texts = predictor.evaluator.at(sizes).texts
        real = fmean(texts[name].n_tokens / before[name].n_tokens - 1 for name in texts)
        missing = predictor.extra_tokens(vocab) - real
        assert (predictor.correction(sizes, texts) > 0) == (missing > 0)
        if vocab == min(VOCABULARIES):
            assert missing > 0
    assert predictor.correction(WHOLE, before) == predictor.loss(WHOLE) == 0.0


@pytest.mark.slow
def test_more_is_lost_the_more_is_dropped(predictor: Predictor) -> None:
    widths = range(128, WHOLE.intermediate_size + 1, 128)
    losses = [predictor.loss(Sizes(8192, width)) for width in widths]
    assert losses == sorted(losses, reverse=True)
    vocabularies = [size for size in predictor._grid if size >= 2000]
    losses = [predictor.loss(Sizes(vocab, 512)) for vocab in vocabularies]
    assert losses == sorted(losses, reverse=True)
    speeds = [predictor.characters_per_token(vocab) for vocab in vocabularies]
    assert speeds == sorted(speeds), "tokens of a larger vocabulary are longer"


# ----- the texts


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return open_directory(write_checkpoint(tmp_path_factory.mktemp("m") / "m"), name="m", origin="m")


@pytest.mark.parametrize(
    ("calibration", "languages", "names"),
    [
        (("stdlib",), (), set()),
        (("stdlib-prose",), (), {"stdlib code"}),
        (("some.txt",), (), {"stdlib code", "stdlib prose"}),
        (("some.txt", "stdlib-prose"), (), {"stdlib code"}),
        (("some.txt",), ("de",), {"stdlib code"}),
        (("some.txt",), ("de", "en-GB"), {"stdlib code", "stdlib prose"}),
        # The default of a folder is stdlib-prose.
        ((), (), {"stdlib code"}),
    ],
)
def test_kinds_of_the_calibration_are_left_out_and_prose_must_be_english(
    source: ModelSource, tmp_path: Path, calibration: tuple[str, ...], languages: tuple[str, ...], names: set[str]
) -> None:
    options = PruneOptions(calibration=calibration, languages=languages)
    texts = other_texts(Context(source, options, Cache(tmp_path, [], [])), 1)
    assert set(texts) == names
    if texts:
        total = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts.values())
        assert 7000 < total <= 8192 * 1.2, "half as much as the held-out text"
    if "stdlib code" in texts:
        assert "import " in texts["stdlib code"]


def test_without_held_out_text_nothing_is_predicted(source: ModelSource, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS), encoding="utf-8")
    options = PruneOptions(calibration=(str(text),), calibration_tokens=64, device="cpu")
    context = Context(source, options, Cache(tmp_path / "cache", [], []))
    bare = replace(calibration_for(context), held_out=())
    with pytest.raises(CalibrationError, match="no text is left to evaluate sizes on"):
        Predictor(context.with_value(calibration_for, bare))
