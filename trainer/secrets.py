"""Text without secrets: what is printed, logged or kept passes through here."""

from __future__ import annotations

import os
import re

HIDDEN = "***"

_WORDS = r"(?:password|passwd|secret|token|credential|api[_-]?key|access[_-]?key)s?"
_CREDENTIALS = re.compile(r"(\w[\w+.-]{0,30}://)[^/\s?#'\"]*@")
_SECRET = re.compile(
    rf"((?:^|[^\w.-])[\w.-]*{_WORDS}['\"]?(?:=|:(?!/))\s*['\"]?)(?!['\"]|None\b|null\b)\S+", re.IGNORECASE
)
_HEADER = re.compile(r"\b(Basic|Bearer)\s+[\w.~+/=-]{6,}")
_SECRET_OPTION = re.compile(rf"--?[\w.-]*{_WORDS}[\w.-]*", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(rf"\w*(?:{_WORDS}|KEY)", re.IGNORECASE)
_SHORTEST = 6


def redact(text: str) -> str:
    """Hide what is secret in a text.

    That is: user names and passwords inside addresses (`http://***@host`), the values of `password=...`, `token: ...`
    and the like, authorization headers, and the values that this process's environment has under such names.
    """
    for value in _known_values():
        text = text.replace(value, HIDDEN)
    text = _CREDENTIALS.sub(rf"\1{HIDDEN}@", text)
    return _HEADER.sub(rf"\1 {HIDDEN}", _SECRET.sub(rf"\1{HIDDEN}", text))


def redact_argv(argv: list[str]) -> list[str]:
    """Redact a command line, also where a secret is a word of its own (`--token VALUE`)."""
    hidden = [False, *(bool(_SECRET_OPTION.fullmatch(word)) for word in argv)]
    return [HIDDEN if hide else redact(word) for word, hide in zip(argv, hidden, strict=False)]


def without_credentials(uri: str) -> str:
    """An address without user name and password: whom it is for is not part of where it is."""
    return _CREDENTIALS.sub(r"\1", uri)


def _known_values() -> list[str]:
    """Secrets of the environment, the longest first; one too short to be told from ordinary words is left out."""
    found = (value for name, value in os.environ.items() if _SECRET_VARIABLE.fullmatch(name))
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)
