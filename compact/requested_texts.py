"""The texts that the options name: checked before a model is fetched, and those that distillation learns from."""

from __future__ import annotations

from compact.calibration.calibration_set import C4
from compact.calibration.hub_dataset import names_hub_dataset, require_datasets
from compact.distill.text import check_texts
from compact.pruning.methods import method_named
from compact.pruning.options import PruneOptions
from compact.sources.hub import names_hub_model


def check_calibration(model: str, options: PruneOptions) -> None:
    """Refuse texts that cannot be read here, before a model is fetched.

    Raises:
        ToolUnavailableError: a Hub data set without the package that reads it.
        CalibrationError: a text to learn from that is not there.
        UsageError: one of two texts to learn from is a part of the other, or the method is unknown.
    """
    default = (C4,) if names_hub_model(model) else ()
    for name in options.calibration or default:
        if method_named(options.method).needs_calibration and names_hub_dataset(name):
            require_datasets(name)
    check_texts_to_learn(options, default)


def check_texts_to_learn(options: PruneOptions, default: tuple[str, ...]) -> None:
    """Refuse texts of a recovery that cannot be read here. Raises what `compact.distill.text.check_texts` does.

    Args:
        options: what the user asked for.
        default: the calibration where the user names none.
    """
    if options.recover is not None:
        is_calibration = not options.recover.text and bool(options.calibration)
        texts = texts_to_learn(options, default)
        check_texts(texts, "--calibration" if is_calibration else "--recover-text")


def texts_to_learn(options: PruneOptions, default: tuple[str, ...]) -> tuple[str, ...]:
    """What a recovery learns from: its own texts, else the calibration's, which are `default` where none are named."""
    own = () if options.recover is None else options.recover.text
    return own or options.calibration or default
