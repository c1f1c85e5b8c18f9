"""Idempotency keys: which batches are stored, so that sending one again stores it once.

A journal in the data directory says, before the first line of a batch with a key is written, where
its lines will lie. Whether they do is asked of the segment itself: the lines decide.
"""
