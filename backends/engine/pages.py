"""The page pool: fixed-size KV pages with reference counts and a prefix index.

A page holds the keys and values of `PAGE_SIZE` consecutive tokens of one sequence. Full pages carry a key made of
(parent key, tokens, extras), so that a later sequence with the same beginning finds and shares them. A freed page keeps
its key until it is handed out again: the free list, oldest first, is the least-recently-used order.
The scheme is vLLM's automatic prefix caching (Kwon et al., SOSP 2023); as in nano-vllm the tokens are compared on a hit,
so a hash collision can never mix two prompts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from ...errors import EngineError

PAGE_SIZE = 16
"""Tokens per page. At 16, a sequence of 200 tokens wastes on average 8 slots, 4 %."""


@dataclass(slots=True)
class Page:
    """Bookkeeping of one page; the tensors live in the runner's pool under `index`."""

    index: int
    references: int = 0
    key: int | None = None
    parent: int = 0
    tokens: tuple[int, ...] = ()
    filled: int = 0
    """Tokens whose keys and values have been written, 0 … PAGE_SIZE."""
    owner: int | None = None
    """Id of the sequence that is to fill this page; None once it is full or its owner left."""


def page_key(parent: int, tokens: SequenceOf[int], extras: object = None) -> int:
    """Return the key of a full page. `parent` is the key of the page before it (0 for the first); `extras` holds
    whatever else changes keys and values (an adapter's id)."""
    return hash((parent, tuple(tokens), extras))


class PagePool:
    """Hands out pages. Not thread-safe: only the scheduler thread touches it.

    Invariants (`check()`): every page is either free (no references) or referenced; a key in the index points to exactly
    one page, which carries that key.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise EngineError(f"cache of {num_pages} pages: the engine needs at least one; raise cache_tokens")
        self.pages = [Page(i) for i in range(num_pages)]
        self._free: OrderedDict[int, None] = OrderedDict((i, None) for i in range(num_pages))
        self._index: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that can be handed out now (unreferenced, cached or not)."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages referenced by at least one sequence."""
        return len(self.pages) - len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages findable by key, referenced or not."""
        return len(self._index)

    def lookup(self, key: int, parent: int, tokens: SequenceOf[int]) -> Page | None:
        """Find the page under `key`, if its tokens and parent really are these. Does not change any count."""
        index = self._index.get(key)
        if index is None:
            return None
        page = self.pages[index]
        return page if page.parent == parent and page.tokens == tuple(tokens) else None

    def share(self, page: Page) -> None:
        """Add a reference; takes the page off the free list if it was there. Its content stays."""
        if page.references == 0:
            del self._free[page.index]
        page.references += 1

    def allocate(self, owner: int) -> Page:
        """Hand out the page that has been free longest, forgetting what it held.

        Raises `EngineError` if none is free; callers check `num_free` first and preempt.
        """
        if not self._free:
            raise EngineError(f"no free page among {len(self.pages)}: raise cache_tokens or send fewer requests at once")
        index, _ = self._free.popitem(last=False)
        page = self.pages[index]
        self._forget(page)
        page.references, page.filled, page.owner = 1, 0, owner
        return page

    def register(self, page: Page, key: int, parent: int, tokens: SequenceOf[int]) -> None:
        """Make `page` findable under `key`. A key that another page holds already stays with that page."""
        if key in self._index:
            return
        page.key, page.parent, page.tokens = key, parent, tuple(tokens)
        self._index[key] = page.index

    def release(self, page: Page) -> None:
        """Drop a reference. At zero the page joins the end of the free list; a full page keeps its key."""
        if page.references < 1:
            raise EngineError(f"page {page.index} released more often than taken")
        page.references -= 1
        if page.references:
            return
        page.owner = None
        if page.filled < PAGE_SIZE:
            self._forget(page)
            # Nothing can be found on it again, so it should be reused before pages that still hold a prefix.
            self._free[page.index] = None
            self._free.move_to_end(page.index, last=False)
        else:
            self._free[page.index] = None

    def clear(self) -> None:
        """Forget every cached prefix that no sequence references."""
        for index in self._free:
            self._forget(self.pages[index])

    def _forget(self, page: Page) -> None:
        if page.key is not None:
            del self._index[page.key]
        page.key, page.parent, page.tokens, page.filled = None, 0, (), 0

    def check(self) -> None:
        """Raise `EngineError` if an invariant is broken. For tests and debugging: costs O(pages)."""
        for page in self.pages:
            if (page.references == 0) != (page.index in self._free):
                raise EngineError(f"page {page.index} has {page.references} references but free={page.index in self._free}")
            if page.key is not None and self._index.get(page.key) != page.index:
                raise EngineError(f"page {page.index} carries a key the index does not know")
        for key, index in self._index.items():
            if self.pages[index].key != key:
                raise EngineError(f"index key {key} points to page {index}, which carries another key")
