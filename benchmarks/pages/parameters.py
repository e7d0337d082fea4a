"""Where the parameters are: the picture and tables of docs/size.md, from the built-in table of published models.

    python -m benchmarks.pages.parameters

Writes docs/parameters.svg, docs/parameters.png and the table of shares. Nothing is measured.
"""

from __future__ import annotations

import argparse

from benchmarks.common import DOCS, summary, table, write_table
from compact_edge.inspect.parameter_plot import write_plot
from compact_edge.inspect.parameter_table import HEADER, counted_models

SCRIPT = "pages.parameters"
DOCUMENT = "size.md"
PICTURES = ("parameters.svg", "parameters.png")


def show() -> str:
    """The table of docs/size.md."""
    return table(HEADER, [model.cells() for model in counted_models()])


def main() -> None:
    """Write the pictures and the table."""
    argparse.ArgumentParser(description=summary(__doc__)).parse_args()
    counted = counted_models()
    for name in PICTURES:
        write_plot(DOCS / name, counted)
    write_table(DOCUMENT, SCRIPT, show())


if __name__ == "__main__":
    main()
