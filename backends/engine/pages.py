"""The page pool: fixed-size KV pages with reference counts, findable by what they hold.

A page holds the keys and values of `PAGE_SIZE` consecutive tokens of one sequence. Full pages carry a key made of
(parent key, tokens), so that a later sequence with the same beginning finds and shares them; every page that begins with
a known token also hangs on a branch (parent key, first token), so that a prompt that parts from it in the middle can copy
what they have in common. A freed page keeps both until it is handed out again: the free list, oldest first, is the
least-recently-used order.
The scheme is vLLM's automatic prefix caching (Kwon et al., SOSP 2023), with SGLang's matching at token granularity (Zheng
et al., 2024); as in nano-vllm the tokens are compared on a hit, so a hash collision can never mix two prompts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import islice

from ...errors import EngineError
from ..models import Adapter

PAGE_SIZE = 16
"""Tokens per page. At 16, a sequence of 200 tokens wastes on average 8 slots, 4 %."""
COMPARED = 8
"""Pages of one branch that a search for the longest common beginning looks at, newest first."""


@dataclass(slots=True)
class Page:
    """Bookkeeping of one page; the tensors live in the runner's pool under `index`."""

    index: int
    references: int = 0
    key: int | None = None
    parent: int = 0
    tokens: SequenceOf[int] = ()
    """Holds the page's tokens from `begin` on: the whole block once it is known, until then the growing list of the
    sequence that writes the page."""
    begin: int = 0
    filled: int = 0
    """Tokens whose keys and values have been written, 0 … PAGE_SIZE."""
    owner: int | None = None
    """Id of the sequence that is to fill this page; None once it is full or its owner left."""
    branch: tuple[int, int] | None = None

    @property
    def written(self) -> tuple[int, ...]:
        """The tokens whose keys and values the page holds, as far as it is findable."""
        return tuple(self.tokens[self.begin : self.begin + self.filled])


def page_key(parent: int, tokens: SequenceOf[int]) -> int:
    """Return the key of a full page. `parent` is the key of the page before it, or `root_key` for the first."""
    return hash((parent, tuple(tokens)))


def root_key(adapter: Adapter | None) -> int:
    """Return the parent of a first page. Sequences of different adapters start from different roots, so no page of theirs
    can ever have the same parent; an adapter that is loaded once more finds its pages again."""
    return 0 if adapter is None else hash(adapter.digest)


class PagePool:
    """Hands out pages. Not thread-safe: only the scheduler thread touches it.

    Invariants (`check()`): every page is either free (no references) or referenced; a key in the index points to exactly
    one page, which carries that key; a page is on its branch and on no other.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise EngineError(f"cache of {num_pages} pages: the engine needs at least one; raise cache_tokens")
        self.pages = [Page(i) for i in range(num_pages)]
        self._free: OrderedDict[int, None] = OrderedDict((i, None) for i in range(num_pages))
        self._index: dict[int, int] = {}
        self._branches: dict[tuple[int, int], dict[int, None]] = {}

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

    def closest(self, parent: int, tokens: SequenceOf[int]) -> tuple[Page | None, int]:
        """Find the page after `parent` that holds the longest beginning of `tokens`, and that beginning's length.

        Compares the `COMPARED` newest candidates only: a shared instruction may have thousands of continuations.
        """
        best, length = None, 0
        if not tokens:
            return None, 0
        for index in islice(reversed(self._branches.get((parent, tokens[0]), {})), COMPARED):
            page = self.pages[index]
            common = _common(page, tokens)
            if common > length:
                best, length = page, common
                if length == len(tokens):
                    break
        return best, length

    def share(self, page: Page) -> None:
        """Add a reference; takes the page off the free list if it was there. Its content stays."""
        if page.references == 0:
            del self._free[page.index]
        page.references += 1

    def touch(self, page: Page) -> None:
        """Note that `page` was useful: if it is free, it is now the last to be handed out."""
        if page.references == 0:
            self._free.move_to_end(page.index)

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
        """Make `page` findable under `key`. A key that another page holds already stays with that page, and this one is
        not findable at all: it could only be found in the other's place."""
        if key in self._index:
            self._leave_branch(page)
            return
        page.key = key
        self._index[key] = page.index
        self.follow(page, parent, tuple(tokens), 0)

    def follow(self, page: Page, parent: int, tokens: SequenceOf[int], begin: int) -> None:
        """Make what is written of `page` findable by its beginning. `tokens[begin]` is its first token; `tokens` may grow,
        and is read only up to what is written."""
        branch = (parent, tokens[begin])
        if page.branch != branch:
            self._leave_branch(page)
            page.branch = branch
            self._branches.setdefault(branch, {})[page.index] = None
        page.parent, page.tokens, page.begin = parent, tokens, begin

    def release(self, page: Page, passing: bool = False) -> None:
        """Drop a reference. At zero the page joins the end of the free list and stays findable; with nothing to find on
        it, it joins the front. passing: what it holds will hardly be asked for again;
        such a page joins the front as well, but can be found."""
        if page.references < 1:
            raise EngineError(f"page {page.index} released more often than taken")
        page.references -= 1
        if page.references:
            return
        page.owner = None
        self._free[page.index] = None
        empty = page.filled == 0 or page.branch is None
        if empty:
            self._forget(page)
        elif page.key is None:
            # Its sequence goes away: keep these few tokens instead of the whole list.
            page.tokens, page.begin = page.written, 0
        if empty or passing:
            self._free.move_to_end(page.index, last=False)

    def clear(self) -> None:
        """Forget every cached prefix that no sequence references."""
        for index in self._free:
            self._forget(self.pages[index])

    def _forget(self, page: Page) -> None:
        if page.key is not None:
            del self._index[page.key]
        self._leave_branch(page)
        page.key, page.filled = None, 0

    def _leave_branch(self, page: Page) -> None:
        if page.branch is not None:
            members = self._branches[page.branch]
            del members[page.index]
            if not members:
                del self._branches[page.branch]
        page.branch, page.parent, page.tokens, page.begin = None, 0, (), 0

    def check(self) -> None:
        """Raise `EngineError` if an invariant is broken. For tests and debugging: costs O(pages)."""
        for page in self.pages:
            if (page.references == 0) != (page.index in self._free):
                raise EngineError(f"page {page.index} has {page.references} references but free={page.index in self._free}")
            if page.key is not None and self._index.get(page.key) != page.index:
                raise EngineError(f"page {page.index} carries a key the index does not know")
            if page.branch is not None and page.index not in self._branches.get(page.branch, ()):
                raise EngineError(f"page {page.index} is not on its branch {page.branch}")
            if page.branch is not None and page.branch != (page.parent, page.tokens[page.begin]):
                raise EngineError(f"page {page.index} hangs on {page.branch} but begins with {page.written}")
        for key, index in self._index.items():
            if self.pages[index].key != key:
                raise EngineError(f"index key {key} points to page {index}, which carries another key")
        for branch, members in self._branches.items():
            if not members or any(self.pages[index].branch != branch for index in members):
                raise EngineError(f"branch {branch} holds pages {list(members)}, which are not all its own")


def _common(page: Page, tokens: SequenceOf[int]) -> int:
    """Length of the common beginning of `tokens` and what is written of `page`."""
    length = 0
    for ours, theirs in zip(tokens, page.written, strict=False):
        if ours != theirs:
            break
        length += 1
    return length
