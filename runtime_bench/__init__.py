"""Measurements on the device itself."""
