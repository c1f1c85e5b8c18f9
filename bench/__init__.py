"""Measure the real service: throughput, latency, CPU, memory, and that nothing is lost."""
