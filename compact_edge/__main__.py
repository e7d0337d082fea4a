"""`python -m compact_edge` is the same as `compact-edge`."""

from compact_edge.cli.main import main

if __name__ == "__main__":
    main()
