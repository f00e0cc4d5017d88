"""Experiments: methods compared on data sets and seeds, sweeps, and throughput."""
