"""Make any text fit for a terminal: names come from files, stores and pictures of whoever made them."""

from __future__ import annotations

import unicodedata


def printable(text: str, keep: str = "\n\t") -> str:
    """Return a text with all that would act on a terminal, or cannot be encoded, written out as Python does.

    Escape sequences and marks that turn the direction of writing are among it; spaces and the signs to `keep` are not.
    """
    if text.isprintable():
        return text
    return "".join(sign if _is_plain(sign) or sign in keep else _written(sign) for sign in text)


def _is_plain(sign: str) -> bool:
    # Of all spaces Python takes only the plain one for printable; files are named with others, too.
    return sign.isprintable() or unicodedata.category(sign) == "Zs"


def _written(sign: str) -> str:
    return sign.encode("unicode_escape").decode()
