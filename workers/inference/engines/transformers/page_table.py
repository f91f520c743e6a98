"""Which pages of a pool belong to which slot. Pure.

As in Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention" (2023), without shared pages.
"""

from __future__ import annotations

PAGE = 256
"""Tokens of a page. Those of a 7B model take 14 MiB, and a slot wastes half a page on average."""

NOTHING, WASTE = 0, 1
"""Two pages that belong to no slot: one is read where a row has no page (it is zero, and hidden
by the mask), and one takes what rows that nobody asked for write."""
_RESERVED = 2


class PageTable:
    """The pages of all slots.

    Args:
        pages: how many the pool has, those without an owner included.
        slots: how many there are.
    """

    def __init__(self, pages: int, slots: int) -> None:
        self._free = list(range(_RESERVED, pages))
        self._pages: list[list[int]] = [[] for _ in range(slots)]

    def pages(self, slot: int) -> list[int]:
        """The pages of a slot, in the order of its tokens."""
        return self._pages[slot]

    def fit(self, slot: int, tokens: int) -> list[int]:
        """Give a slot the pages for so many tokens, no more; those that it did not have before.

        Raises:
            MemoryError: there are not enough; nothing has changed.
        """
        own, count = self._pages[slot], pages_of(tokens)
        if count - len(own) > len(self._free):
            raise MemoryError(f"{tokens} tokens need {count} pages, {len(self._free)} are free")
        self._free += own[count:]
        del own[count:]
        new = [self._free.pop() for _ in range(count - len(own))]
        own += new
        return new

    def index(self, slot: int, position: int) -> int:
        """Where in the pool a token is, in tokens."""
        return self._pages[slot][position // PAGE] * PAGE + position % PAGE


def pages_of(tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-tokens // PAGE)


def pool_pages(tokens: int, slots: int) -> int:
    """How large a pool is for slots that hold so many tokens together, however they share them."""
    return _RESERVED + pages_of(tokens) + slots


def bucket(count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: few shapes, and at most a third in vain."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 else power
