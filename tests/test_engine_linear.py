"""Products of bytes in torch, where the compiled decoder does not run."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.engine.linear import EXACT_TERMS, exact_product


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), width=st.integers(1, 80), out=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_products_of_bytes_are_exact(rows, width, out, seed):
    random = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-127, 128, shape, generator=random, dtype=torch.int8) for shape in ((rows, width), (width, out)))
    product = exact_product(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), a.long() @ b.long())


@pytest.mark.parametrize("width", [EXACT_TERMS, EXACT_TERMS + 1, 3 * EXACT_TERMS])
def test_sums_beyond_what_float32_holds_are_exact(width):
    """All products at their largest: a sum of more terms than one part has would not fit into 24 bits."""
    a = torch.full((8, width), 127, dtype=torch.int8)
    b = torch.full((width, 4), 127, dtype=torch.int8)
    b[0] = 126  # an odd total, which float32 would round
    assert torch.equal(exact_product(a, b).long(), a.long() @ b.long())
