"""Idempotency keys: a batch with a key is stored once, however often it is sent."""
