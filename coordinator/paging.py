"""Pages of lists: the token is the last key of the page before, so that pages hold while the list changes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from meshkit.errors import InvalidInputError

Item = TypeVar("Item")
DEFAULT_SIZE = 100
MOST = 1000


def page(
    items: Sequence[Item],
    size: int,
    token: str,
    key: Callable[[Item], str],
    comes_after: Callable[[Item, str], bool] | None = None,
) -> tuple[list[Item], str]:
    """One page of sorted items, and the token of the next; the token is empty on the last page.

    `key` names an item; `comes_after(item, key)` tells the items' order, which is that of the keys unless given. Raises
    InvalidInputError when the token is not one that this function gave.
    """
    after = comes_after or (lambda item, last: key(item) > last)
    try:
        last = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
        rest = [item for item in items if after(item, last)] if token else list(items)
    except (binascii.Error, ValueError, InvalidInputError):
        raise InvalidInputError(f"page_token {token!r} is not valid", hint="pass next_page_token unchanged") from None
    most = min(size or DEFAULT_SIZE, MOST)
    chosen = rest[:most]
    following = base64.urlsafe_b64encode(key(chosen[-1]).encode()).decode() if len(rest) > most else ""
    return chosen, following
