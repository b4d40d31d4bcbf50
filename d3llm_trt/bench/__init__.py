"""Benchmarks of the runtime on real or random weights."""
