"""Idempotency keys: a batch with a key is stored once, however often it is sent.

A record in `keys.db` has the position of a batch's lines before the first of them is written. The
segment itself decides whether the lines are stored.
"""
