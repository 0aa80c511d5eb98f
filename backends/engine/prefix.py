"""What a sequence shares with others: its pages, as far as they are known, and how they become findable."""

from __future__ import annotations

from .pages import PAGE_SIZE, Page, PagePool, page_key, root_key
from .sequence import Sequence


def known_pages(pool: PagePool, sequence: Sequence) -> tuple[list[Page], list[int]]:
    """Find the longest chain of known pages with their keys, up to the first row whose logits are needed."""
    tokens = sequence.tokens
    pages: list[Page] = []
    keys: list[int] = []
    parent = root_key(sequence.adapter)
    for begin in range(0, sequence.needed - PAGE_SIZE + 1, PAGE_SIZE):
        block = tokens[begin : begin + PAGE_SIZE]
        key = page_key(parent, block)
        page = pool.lookup(key, parent, block)
        if page is None:
            break
        pages.append(page)
        keys.append(key)
        parent = key
    return pages, keys


def append_page(pool: PagePool, sequence: Sequence) -> Page:
    """Allocate the sequence's next page and make it findable: by key at once if its tokens are known already."""
    page = pool.allocate(sequence.id)
    sequence.pages.append(page)
    register_known(pool, sequence)
    if len(sequence.page_keys) < len(sequence.pages):
        begin = (len(sequence.pages) - 1) * PAGE_SIZE
        pool.follow(page, parent_key(sequence), sequence.tokens, begin)
    return page


def parent_key(sequence: Sequence) -> int:
    """Parent of the page after the last one with a key."""
    return sequence.page_keys[-1] if sequence.page_keys else root_key(sequence.adapter)


def register_known(pool: PagePool, sequence: Sequence) -> None:
    """Make those of the sequence's pages findable by key whose tokens are all known by now."""
    for index in range(len(sequence.page_keys), len(sequence.tokens) // PAGE_SIZE):
        if index >= len(sequence.pages):
            return
        parent = parent_key(sequence)
        block = sequence.tokens[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
        key = page_key(parent, block)
        sequence.page_keys.append(key)
        pool.register(sequence.pages[index], key, parent, block)
