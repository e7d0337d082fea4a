"""Estimates of speed, with numbers that can be checked by hand."""

from __future__ import annotations

import pytest

from exporters.speed_estimate import characters_per_second, decode_tokens_per_second, prefill_ratio


def test_decoding_reads_all_weights_and_half_of_the_cache() -> None:
    assert decode_tokens_per_second(1_000_000_000, 0, 10e9) == pytest.approx(10.0)
    # Twice the weights take twice the time. So does a cache of twice the weights, of which half is read on average.
    assert decode_tokens_per_second(2_000_000_000, 0, 10e9) == pytest.approx(5.0)
    assert decode_tokens_per_second(1_000_000_000, 2_000_000_000, 10e9) == pytest.approx(5.0)


def test_shorter_tokens_are_slower_text() -> None:
    assert characters_per_second(10.0, 4.5) == pytest.approx(45.0)
    assert characters_per_second(10.0, 4.0) < characters_per_second(10.0, 4.5)


def test_prefill_is_faster_by_the_weights_and_slower_by_the_tokens() -> None:
    assert prefill_ratio(100, 80) == pytest.approx(1.25)
    ratio = prefill_ratio(100, 80, characters_per_token_before=4.0, characters_per_token_after=3.2)
    assert ratio == pytest.approx(1.0)
