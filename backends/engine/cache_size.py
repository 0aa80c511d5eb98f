"""How large the KV cache is where nobody says: a share of the machine's memory, for a model's keys and values."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from ..models import Model
from .pages import PAGE_SIZE

SHARE = 4
"""One part of so many of the memory. A compile asks for the same long prompts again and again (their calibration, their
candidates' common beginnings), and what has left the cache by then is computed anew; only what is used takes memory."""
MOST = 2**20
"""Tokens that are enough for everyone; what is written down about their pages takes memory too."""
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def default_cache_tokens(model: Model) -> int:
    """Tokens whose keys and values fit into a share of the memory this process may have; at least a page, at most `MOST`."""
    return min(MOST, max(PAGE_SIZE, memory() // SHARE // bytes_per_token(model)))


def bytes_per_token(model: Model) -> int:
    """What the keys and values of a token take: bf16, beside fp32 weights fp32."""
    spec = model.spec
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * (4 if model.quantization == "fp32" else 2)


def memory() -> int:
    """Bytes of memory this process may have: the machine's, or its container's limit (cgroups v2, v1) if that is less."""
    found = [int(psutil.virtual_memory().total)]
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
            found.append(int(file.read_text("ascii")))
    return min(found)
