"""The page pool under random use: no leak, no double free, no page in two hands."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from still.backends.engine.pages import PAGE_SIZE, PagePool, page_key
from still.errors import EngineError

BLOCKS = [tuple([n] * PAGE_SIZE) for n in range(3)]


def test_shared_page_lives_until_its_last_reference_goes():
    pool = PagePool(2)
    page = pool.allocate(owner=1)
    page.filled = PAGE_SIZE
    key = page_key(0, BLOCKS[0])
    pool.register(page, key, 0, BLOCKS[0])
    pool.share(page)
    pool.release(page)
    assert pool.num_used == 1
    pool.release(page)
    assert pool.num_used == 0
    assert pool.lookup(key, 0, BLOCKS[0]) is page, "a freed full page stays findable"


def test_a_colliding_key_is_not_a_hit():
    pool = PagePool(1)
    page = pool.allocate(owner=1)
    pool.register(page, 42, 0, BLOCKS[0])
    assert pool.lookup(42, 0, BLOCKS[1]) is None
    assert pool.lookup(42, 7, BLOCKS[0]) is None


def full_pages(pool):
    """A page for each of `BLOCKS`."""
    pages = [pool.allocate(owner=1) for _ in BLOCKS]
    for page, block in zip(pages, BLOCKS, strict=True):
        page.filled = PAGE_SIZE
        pool.register(page, page_key(0, block), 0, block)
    return pages


def test_least_recently_used_page_is_reused_first():
    pool = PagePool(3)
    pages = full_pages(pool)
    for page in (pages[1], pages[2], pages[0]):
        pool.release(page)
    assert pool.allocate(owner=2) is pages[1]
    assert pool.lookup(page_key(0, BLOCKS[2]), 0, BLOCKS[2]) is pages[2]


def test_what_was_passing_is_handed_out_first_and_found_until_then():
    pool = PagePool(4)
    pages = full_pages(pool)
    pool.release(pages[0])
    pool.release(pages[1], passing=True)
    assert pool.lookup(page_key(0, BLOCKS[1]), 0, BLOCKS[1]) is pages[1]
    assert pool.allocate(owner=2) is pages[1]
    assert pool.lookup(page_key(0, BLOCKS[0]), 0, BLOCKS[0]) is pages[0]


def test_releasing_twice_and_allocating_from_nothing_are_errors():
    pool = PagePool(1)
    page = pool.allocate(owner=1)
    with pytest.raises(EngineError, match="no free page"):
        pool.allocate(owner=1)
    pool.release(page)
    with pytest.raises(EngineError, match="released more often"):
        pool.release(page)


class PoolMachine(RuleBasedStateMachine):
    """Random sequences of operations beside a model that only counts references."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(6)
        self.references: dict[int, int] = {}

    @precondition(lambda self: self.pool.num_free)
    @rule(block=st.sampled_from(BLOCKS), full=st.booleans())
    def allocate(self, block, full):
        page = self.pool.allocate(owner=0)
        assert self.references.get(page.index, 0) == 0, "handed out a page that is in use"
        self.references[page.index] = 1
        page.filled = PAGE_SIZE if full else 3
        if full:
            self.pool.register(page, page_key(0, block), 0, block)

    @rule(block=st.sampled_from(BLOCKS))
    def share_if_found(self, block):
        page = self.pool.lookup(page_key(0, block), 0, block)
        if page is not None:
            assert page.tokens == block
            self.pool.share(page)
            self.references[page.index] = self.references.get(page.index, 0) + 1

    @precondition(lambda self: any(self.references.values()))
    @rule(data=st.data(), passing=st.booleans())
    def release(self, data, passing):
        index = data.draw(st.sampled_from(sorted(i for i, n in self.references.items() if n)))
        self.pool.release(self.pool.pages[index], passing)
        self.references[index] -= 1

    @rule()
    def clear(self):
        self.pool.clear()

    @invariant()
    def consistent(self):
        self.pool.check()
        assert self.pool.num_used == sum(n > 0 for n in self.references.values())
        assert self.pool.num_used + self.pool.num_free == 6


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
