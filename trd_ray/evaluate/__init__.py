"""Benchmarks: sampled answers enter, scores with intervals leave."""
