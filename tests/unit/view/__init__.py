"""Tests of what makes stored lines readable."""
