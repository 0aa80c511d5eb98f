"""Four-bit groups: what they can hold exactly, and how far off they may be."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import example, given, settings
from hypothesis import strategies as st
from still.backends.models.quantize import GROUP, dequantize_groups, quantize_groups


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_four_bit_blocks_of_a_gguf_file_are_found_again(kind):
    kind = gguf.GGMLQuantizationType[kind]
    random = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    weights = torch.from_numpy(dequantize(quantize(random, kind), kind).reshape(64, 256).copy())
    back = dequantize_groups(quantize_groups(weights), 256)
    # But for the rounding of scales to half precision. A Q4_1 block always uses its whole range, and Q4_0's grid is tried.
    torch.testing.assert_close(back, weights, atol=1.5e-3 * float(weights.abs().max()), rtol=0)


@given(
    seed=st.integers(0, 1000),
    width=st.sampled_from([32, 33, 64, 100]),
    spread=st.floats(1e-3, 100.0),
    offset=st.floats(-10.0, 10.0),
)
@example(seed=820, width=33, spread=0.001953125, offset=0.0)
@settings(max_examples=60, deadline=None)
def test_no_weight_is_further_off_than_its_group_allows(seed, width, spread, offset):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(5, width, generator=generator) * spread + offset
    groups = quantize_groups(weights)
    assert groups.q4.dtype == torch.uint8
    assert groups.q4.shape[1] * 2 == -(-width // GROUP) * GROUP
    padded = torch.nn.functional.pad(weights, (0, -width % GROUP), mode="replicate")
    blocks = padded.view(5, -1, GROUP)
    span = (blocks.amax(-1) - blocks.amin(-1))[..., None]
    error = torch.nn.functional.pad(dequantize_groups(groups, width) - weights, (0, -width % GROUP)).view(blocks.shape)
    # A range that is narrowed by up to a fifth cuts a tenth off either end; half precision adds its rounding, of fifteen
    # steps and the minimum, which close to zero is not relative: its subnormal numbers are 2**-24 apart.
    rounding = 2e-3 * (span + blocks.abs().amax(-1, keepdim=True)) + 16 * 2.0**-25
    assert (error.abs() <= 0.14 * span + rounding).all()
    plain = (span / 15 / 2).square().mul(GROUP).sum()  # what rounding to the group's own range costs at most
    assert error.square().sum() <= plain + 1e-5 * weights.square().sum()


def test_a_constant_group_is_exact():
    weights = torch.full((2, 64), 0.625)
    weights[1] = 0
    assert torch.equal(dequantize_groups(quantize_groups(weights), 64), weights)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_groups_of_other_sizes_are_held(group):
    """GPTQ and AWQ use groups of 128 (and 64, 32) with an integer zero point."""
    generator = torch.Generator().manual_seed(1)
    nibbles = torch.randint(0, 16, (8, 256), generator=generator).float()
    nibbles[:, ::group], nibbles[:, 1::group] = 0, 15  # a group that spans its range has one solution
    scale = torch.rand(8, 256 // group, generator=generator).half().float() / 16
    zero = torch.randint(0, 16, (8, 256 // group), generator=generator).float()
    weights = (nibbles - zero.repeat_interleave(group, 1)) * scale.repeat_interleave(group, 1)
    back = dequantize_groups(quantize_groups(weights, group), 256)
    torch.testing.assert_close(back, weights, atol=2e-3 * float(weights.abs().max()), rtol=0)
