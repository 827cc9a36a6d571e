"""Pages of lists: the token is the last key of the page before, so that pages hold while the list changes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import TypeVar

from meshkit.errors import InvalidInputError

Item = TypeVar("Item")
DEFAULT_SIZE = 100
MOST = 1000


def page(items: Sequence[tuple[str, Item]], size: int, token: str) -> tuple[list[Item], str]:
    """One page of items sorted by their unique keys, and the token of the next; the token is empty on the last page.

    Raises InvalidInputError when the token is not one that this function gave.
    """
    try:
        after = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidInputError(f"page_token {token!r} is not valid", hint="pass next_page_token unchanged") from None
    rest = [(key, item) for key, item in items if key > after] if token else list(items)
    most = min(size or DEFAULT_SIZE, MOST)
    chosen = rest[:most]
    following = base64.urlsafe_b64encode(chosen[-1][0].encode()).decode() if len(rest) > most else ""
    return [item for _, item in chosen], following
