"""Counters and metrics, added up across workers for Prometheus and the status page."""
