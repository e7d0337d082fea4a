"""Engines that run an artifact on a device: one module each, one interface (`base.EngineKind`), one `registry`."""
