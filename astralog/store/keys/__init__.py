"""Idempotency keys: a batch with a key is stored once, however often it is sent.

A record in `keys.db` says, before the first line of a batch with a key is written, where its lines
will lie. Whether they do is read from the segment itself: the lines decide.
"""
