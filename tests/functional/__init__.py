"""Tests that start the real service and look at its answers and at the bytes on disk."""
