"""Engines that run an artifact on a device. One module each, one interface (`base.Engine`)."""
