"""Loggers that are separate from those of the tests' own process."""

import logging


def make_logger(handler: logging.Handler) -> logging.Logger:
    """Return a logger of every level with only this handler."""
    logger = logging.Logger("shop.billing")
    logger.addHandler(handler)
    return logger


def log(handler: logging.Handler, *messages: str) -> None:
    """Log the messages through the handler."""
    logger = make_logger(handler)
    for message in messages:
        logger.info(message)
