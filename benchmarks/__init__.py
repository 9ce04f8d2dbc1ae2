"""Ours and the peers in one job, interleaved; see `python -m benchmarks --list`."""
