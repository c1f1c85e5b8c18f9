"""Loggers apart from those of the tests' own process."""

import logging


def make_logger(handler: logging.Handler) -> logging.Logger:
    """Return a logger of every level with this handler alone."""
    logger = logging.Logger("shop.billing")
    logger.addHandler(handler)
    return logger
