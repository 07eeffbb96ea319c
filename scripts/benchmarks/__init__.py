"""Benchmarks beside peers, and the `Cluster` that they share with the end-to-end tests."""
