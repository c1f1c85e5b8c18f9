import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.view.sealer import BLOCK_BYTES, Sealer

SEALER = Sealer(b"s" * 32)
TEXTS = st.text(st.characters(codec="utf-8"))


@given(TEXTS)
def test_a_sealed_text_is_opened(text: str) -> None:
    assert text == SEALER.open(SEALER.seal(text))
    assert text == SEALER.open_hidden(SEALER.seal_hidden(text))


@given(TEXTS)
def test_a_text_that_was_not_sealed_is_rejected(text: str) -> None:
    """Nor is one that was sealed with another secret, or changed."""
    other = Sealer(b"o" * 32).seal(text)
    sealed = SEALER.seal(text)
    for wrong in (text, other, sealed[:-2], "AA" + sealed[2:], sealed[::-1]):
        if wrong != sealed:
            with pytest.raises(ValueError):  # noqa: PT011  # of several kinds
                SEALER.open(wrong)
            with pytest.raises(ValueError):  # noqa: PT011
                SEALER.open_hidden(wrong)


def test_sealed_text_hides_length_and_equality() -> None:
    """The length of a cursor does not reveal the logs of others."""
    sealed = [SEALER.seal_hidden("x" * size) for size in (1, 10, 100, 100)]
    assert 1 == len({len(text) for text in sealed})
    assert 4 == len(set(sealed))
    assert len(sealed[0]) < 2 * BLOCK_BYTES


def test_a_sealed_text_fits_into_a_query() -> None:
    """With any content, such as a cursor of many segments."""
    sealed = SEALER.seal_hidden("20261123T062500.123456Z-4711:184940," * 64)
    assert len(sealed) < 2500
    assert sealed.replace("-", "").replace("_", "").isalnum()
