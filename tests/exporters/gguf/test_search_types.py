"""Mixes of types: within the wanted bits, and never worse than one type for all matrices."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.gguf.search_types import cheapest
from exporters.llamacpp.quant_types import GGML_TYPES
from exporters.llamacpp.type_errors import TypeErrors

# Types with these bits, and their errors for a matrix that is easy to store.
TYPICAL = {"Q8_0": 4e-5, "Q6_K": 3e-4, "Q5_K": 1.2e-3, "Q4_K": 5e-3, "IQ4_XS": 5.5e-3, "Q3_K": 2e-2, "IQ3_XXS": 3e-2}
BITS = {name: GGML_TYPES[name].bits for name in TYPICAL}
SMALLEST, LARGEST = min(BITS.values()), max(BITS.values())


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, int], TypeErrors]:
    """Matrices of different sizes, some of which are harder to store than others."""
    sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=12))
    factors = draw(st.lists(st.floats(0.2, 5.0), min_size=len(sizes), max_size=len(sizes)))
    counts = {f"m{n}": 1024 * size for n, size in enumerate(sizes)}
    return counts, TypeErrors({f"m{n}": {k: e * f for k, e in TYPICAL.items()} for n, f in enumerate(factors)})


def mean_bits(counts: dict[str, int], types: dict[str, str]) -> float:
    return sum(BITS[types[name]] * count for name, count in counts.items()) / sum(counts.values())


def total_error(errors: TypeErrors, types: dict[str, str]) -> float:
    return sum(errors.at(name, kind) for name, kind in types.items())


@given(model=models(), bits=st.floats(SMALLEST, LARGEST + 1))
def test_bits_are_within_the_budget_and_no_single_type_is_better(
    model: tuple[dict[str, int], TypeErrors], bits: float
) -> None:
    counts, errors = model
    types = cheapest(counts, errors, bits)
    assert types.keys() == counts.keys()
    used = mean_bits(counts, types)
    assert used <= bits + 1e-9
    # A single type with no more bits than the mix never has a smaller error.
    for kind, each in BITS.items():
        if each <= used:
            assert total_error(errors, types) <= total_error(errors, dict.fromkeys(counts, kind)) * (1 + 1e-9)


@given(model=models())
def test_more_bits_never_have_a_larger_error(model: tuple[dict[str, int], TypeErrors]) -> None:
    counts, errors = model
    found = [total_error(errors, cheapest(counts, errors, bits)) for bits in (3.2, 3.6, 4.0, 4.6, 5.5, 6.6, 8.5)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(found))
    assert found[-1] == pytest.approx(total_error(errors, dict.fromkeys(counts, "Q8_0")))


def test_small_and_hard_matrices_get_more_bits() -> None:
    counts = {"small": 1000, "large": 100_000, "hard": 100_000}
    errors = TypeErrors({name: {k: e * (8 if name == "hard" else 1) for k, e in TYPICAL.items()} for name in counts})
    types = cheapest(counts, errors, 4.6)
    assert BITS[types["small"]] > BITS[types["large"]]
    assert BITS[types["hard"]] > BITS[types["large"]]


def test_if_no_type_is_small_enough_the_smallest_are_taken() -> None:
    counts = {"a": 1024, "b": 4096}
    errors = TypeErrors(dict.fromkeys(counts, TYPICAL))
    assert cheapest(counts, errors, 1.0) == {"a": "IQ3_XXS", "b": "IQ3_XXS"}


def test_types_that_a_matrix_cannot_have_are_not_given_to_it() -> None:
    counts = {"a": 1024, "b": 1024}
    errors = TypeErrors({"a": TYPICAL, "b": {"Q8_0": 4e-5, "Q5_0": 2e-3, "IQ4_NL": 6e-3}})
    for bits in (3.0, 4.5, 6.0, 8.5):
        assert cheapest(counts, errors, bits)["b"] in ("Q8_0", "Q5_0", "IQ4_NL")
