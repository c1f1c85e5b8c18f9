"""Tests that start the real service and check its responses and the bytes on disk."""
