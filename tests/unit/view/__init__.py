"""Tests of the readable forms of stored lines."""
