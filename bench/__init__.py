"""Peers and reroot on the same input, interleaved in one run: median ratios into docs/benchmarks.md."""
