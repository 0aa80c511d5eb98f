"""The library of compiled kernels (see native/): where it is, what it can use of this machine, the structures it takes.

Built by setuptools as an optional extension and called through ctypes, which releases the interpreter lock.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import lru_cache

LEVELS = ("torch", "avx2", "avx-vnni", "avx512-vnni", "avx512-vnni-bf16", "amx", "neon")
"""Names of what `native_level` returns."""

_P, _I = ctypes.c_void_p, ctypes.c_int32


class Matrix(ctypes.Structure):
    _fields_ = (
        ("packed", _P), ("scale", _P), ("offset", _P), ("group_scale", _P), ("group_min", _P), ("bias", _P),
        ("format", _I), ("out", _I), ("in_", _I), ("padded_in", _I), ("group", _I),
    )  # fmt: skip


NORMS = ("attn_norm", "mlp_norm", "q_norm", "k_norm", "attn_post_norm", "mlp_post_norm")
MATRICES = ("qkv", "o", "gate_up", "down")


class Layer(ctypes.Structure):
    _fields_ = (
        *((name, _P) for name in NORMS), ("cos", _P), ("sin", _P), ("window", ctypes.c_int64),
        *((name, Matrix) for name in MATRICES),
    )  # fmt: skip


class Network(ctypes.Structure):
    _fields_ = (
        ("layers", _I), ("hidden", _I), ("intermediate", _I), ("heads", _I), ("kv_heads", _I), ("head_dim", _I),
        ("activation", _I), ("eps", ctypes.c_float), ("attention_scale", ctypes.c_float), ("embed_scale", ctypes.c_float),
        ("layer", ctypes.POINTER(Layer)), ("final_norm", _P), ("embed", _P), ("lm_head", Matrix),
        ("keys", _P), ("values", _P), ("layer_stride", ctypes.c_int64),
    )  # fmt: skip


class LowRank(ctypes.Structure):
    _fields_ = (("a", _P), ("b", _P), ("begin", _P), ("end", _P), ("rank", _I))


class AdapterLayer(ctypes.Structure):
    _fields_ = tuple((name, LowRank) for name in MATRICES)


class Group(ctypes.Structure):
    _fields_ = (
        ("first_row", _I), ("rows", _I), ("first_entry", _I), ("pages", _I), ("page_position", _I), ("phase", _I),
    )  # fmt: skip


class Step(ctypes.Structure):
    _fields_ = (
        ("rows", _I), ("groups", _I), ("tokens", _P), ("positions", _P), ("slots", _P), ("group", _P),
        ("row_list", _P), ("page_list", _P), ("adapter", _P),
    )  # fmt: skip


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The library, or None where it was built without a compiler."""
    spec = importlib.util.find_spec("._kernels", __package__)
    if spec is None or spec.origin is None:
        return None
    loaded = ctypes.CDLL(spec.origin)
    loaded.still_workspace_new.restype = _P
    for name, arguments in {
        "still_workspace_free": [_P],
        "still_workspace_reserve": [_P, _P, _I, _I],
        "still_workspace_parts": [_P, _P, _P],
        "still_forward": [_I, _P, _P, _P, _P],
        "still_logits": [_I, _P, _P, _I, _P, _P],
        "still_pick": [_I, _P, _I, _I, _P, _P, _P],
        "still_runs": [_I],
        "still_page_out": [_P, ctypes.c_size_t],
    }.items():
        getattr(loaded, name).argtypes = arguments
    return loaded


@lru_cache(maxsize=1)
def native_level() -> int:
    """Which instruction set the compiled decoder uses here, an index into `LEVELS`; 0: it cannot run."""
    return max(native_levels(), default=0)


def native_levels() -> tuple[int, ...]:
    """All that it could use here."""
    loaded = library()
    return () if loaded is None else tuple(level for level in range(len(LEVELS)) if loaded.still_runs(level))


def release_team() -> None:
    """Let the calling thread's idle OpenMP workers go. Call it after work that another thread's goes on from: with more
    threads alive than cores none of them spins at barriers, which costs a third of a training's speed."""
    loaded = library()
    if loaded is not None:
        loaded.still_release_team()
