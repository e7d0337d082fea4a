"""Which of the published models fit a phone: the table of docs/size.md. Nothing is measured.

python -m benchmarks.pages.target_fits
"""

from __future__ import annotations

import argparse

from benchmarks.common import summary, table, write_table
from compact_edge.inspect.device_fit import MEASURED_RATIO, fit_model
from compact_edge.inspect.parameter_table import inspected_table
from targets.profile import load_profile

SCRIPT = "pages.target_fits"
DOCUMENT = "size.md"
TARGET = "phone-arm64"


def show() -> str:
    """The models that fit `TARGET`, unpruned or at a ratio that was measured, and the names of the others."""
    profile = load_profile(TARGET)
    fits = [fit_model(model, profile, None, None) for model in inspected_table()]
    rows, far, none = [], [], []
    for fit in fits:
        if not fit.fits and fit.cut is None:
            none.append(fit.model)
            continue
        if fit.wanted is not None and fit.wanted > MEASURED_RATIO:
            far.append(f"{fit.model} ({fit.wanted:.2f})")
            continue
        place = fit.whole if fit.cut is None else fit.cut
        rows.append(
            [
                fit.model,
                *(f"{n_bytes / 1e6:,.0f} MB" for n_bytes in (fit.whole.file_bytes, fit.whole.memory.total)),
                "fits" if fit.wanted is None else f"{fit.wanted:.2f}",
                f"{place.sizes.vocab_size:,}",
                f"{place.sizes.intermediate_size:,}",
                *(f"{n_bytes / 1e6:,.0f} MB" for n_bytes in (place.file_bytes, place.memory.total)),
            ]
        )
    header = ["model", "file, unpruned", "memory, unpruned", "smallest ratio that fits"]
    header += ["vocab_size", "intermediate_size", "file at that ratio", "memory at that ratio"]
    return (
        table(header, rows)
        + f"\n\nThese would need a ratio above {MEASURED_RATIO:g}: {', '.join(far)}."
        + f"\n\nNo cut makes these fit: {', '.join(none)}."
    )


def main() -> None:
    """Write the table."""
    argparse.ArgumentParser(description=summary(__doc__)).parse_args()
    write_table(DOCUMENT, SCRIPT, show())


if __name__ == "__main__":
    main()
