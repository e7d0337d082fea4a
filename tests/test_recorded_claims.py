"""What README and docs say of recorded figures holds in every one of them, so that a new run cannot break it unseen."""

from __future__ import annotations

import numpy as np

from benchmarks.common import recorded
from benchmarks.scale import prune_scale
from benchmarks.scale.prune_scale_cuda import swapped_beyond


def test_a_repair_is_better_than_the_plain_cut_on_every_text_at_every_ratio_with_every_seed() -> None:
    cells = recorded("compare-methods")["cells"]
    plain = {key: cell["bits_per_byte"] for key, cell in cells.items() if key.split("|")[1] == "COMPACT"}
    assert {key.split("|")[0] for key in plain} == {"0.1", "0.2", "0.35"}
    assert len([key for key in plain if key.startswith("0.2|")]) == 3
    for key, bits in plain.items():
        repaired = cells[key.replace("COMPACT", "repair")]["bits_per_byte"]
        assert all(repaired[kind] < value for kind, value in bits.items()), key


def test_a_repair_helps_with_every_calibration() -> None:
    cells = recorded("patterns")["cells"]
    pairs = [(name, f"{name}, repair") for name in cells if f"{name}, repair" in cells]
    assert any("stdlib-prose" in name for name, _ in pairs)
    for plain, repaired in pairs:
        assert all(
            cells[repaired]["bits_per_byte"][kind] < value for kind, value in cells[plain]["bits_per_byte"].items()
        ), plain


def test_time_and_memory_of_the_calibration_are_within_their_limits() -> None:
    found = prune_scale.ratios(recorded("prune-scale"))
    assert found["act2"] <= prune_scale.ACT2_LIMIT
    assert found["act2 + H"] <= prune_scale.H_LIMIT
    assert found["memory"] <= prune_scale.MEMORY_LIMIT


def test_choices_that_differ_in_equal_channels_alone_are_the_same() -> None:
    scores = np.array([5.0, 4.0, 3.0, 3.0 - 1e-6, 1.0])
    assert swapped_beyond(scores, [0, 1, 2], [0, 1, 2]) == 0
    assert swapped_beyond(scores, [0, 1, 2], [0, 1, 3]) == 0
    assert swapped_beyond(scores, [0, 1, 2], [0, 2, 3]) == 1
    assert swapped_beyond(scores, [0, 1, 2], [2, 3, 4]) == 2
