"""Device profiles: what a target can hold and which quantization suits it."""
