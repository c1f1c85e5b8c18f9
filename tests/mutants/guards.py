"""Every guard that is taken out by name, and the tests that must notice that it is gone."""

from typing import NamedTuple


class Guard(NamedTuple):
    """A piece of code that keeps a promise.

    `code` stands once in the file `path`, and is replaced by `without`; at least one of `tests`,
    which are pytest's arguments, must then fail.
    """

    name: str
    path: str
    code: str
    without: str
    tests: tuple[str, ...]

    def remove_from(self, text: str) -> str:
        """Return the text of the file without the guard; ValueError where it is not there once."""
        if text.count(self.code) != 1:
            raise ValueError(f"{self.name}: {self.path} has its code {text.count(self.code)} times")
        return text.replace(self.code, self.without)


GUARDS: tuple[Guard, ...] = (
    Guard(
        "authentication before the body",
        "astralog/api/drain.py",
        'token = tokens.authenticate(environ.get("HTTP_AUTHORIZATION"))',
        'environ["wsgi.input"].read(1); '
        'token = tokens.authenticate(environ.get("HTTP_AUTHORIZATION"))',
        ("tests/functional/test_contract.py", "-k", "rejected_before_the_body_is_read"),
    ),
)
