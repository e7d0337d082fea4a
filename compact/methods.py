"""The methods of pruning."""

from __future__ import annotations

METHODS = ("compact", "repair", "magnitude", "random")
# Those whose channels are scored by activations, and which need a calibration.
CALIBRATED = ("compact", "repair")
