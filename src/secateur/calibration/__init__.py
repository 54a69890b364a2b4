"""Calibration data: samples, sources, packing, filters."""
