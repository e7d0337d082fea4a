"""Check the texts that the options name before a model is downloaded, and choose the texts for distillation."""

from __future__ import annotations

from compact.calibration.calibration_set import C4
from compact.calibration.hub_dataset import names_hub_dataset, require_datasets
from compact.distill.text import check_texts
from compact.pruning.methods import method_named
from compact.pruning.options import PruneOptions
from compact.sources.hub import names_hub_model


def check_calibration(model: str, options: PruneOptions) -> None:
    """Check that all requested texts can be read, before a model is downloaded.

    Raises:
        ToolUnavailableError: a Hub data set is requested, but the package that reads it is not installed.
        CalibrationError: a text for distillation does not exist.
        UsageError: one text for distillation is part of another one, or the method is unknown.
    """
    default = (C4,) if names_hub_model(model) else ()
    for name in options.calibration or default:
        if method_named(options.method).needs_calibration and names_hub_dataset(name):
            require_datasets(name)
    check_texts_to_learn(options, default)


def check_texts_to_learn(options: PruneOptions, default: tuple[str, ...]) -> None:
    """Check that all texts for distillation can be read. Raises the errors of `compact.distill.text.check_texts`.

    Args:
        options: the user's options.
        default: the calibration texts to use if the user names none.
    """
    if options.recover is not None:
        is_calibration = not options.recover.text and bool(options.calibration)
        texts = texts_to_learn(options, default)
        check_texts(texts, "--calibration" if is_calibration else "--recover-text")


def texts_to_learn(options: PruneOptions, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the texts for distillation: those of `--recover-text`, else of `--calibration`, else `default`."""
    named = () if options.recover is None else options.recover.text
    return named or options.calibration or default
