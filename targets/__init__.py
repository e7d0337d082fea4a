"""Device profiles: the limits of a target, and the quantization that suits it."""
