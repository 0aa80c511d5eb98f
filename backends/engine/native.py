"""The compiled decoder: int8 weights, bf16 pages, one C call per step (see native/).

Built by setuptools as an optional extension and called through ctypes, which releases the interpreter lock. Needs
AVX-512 with VNNI on x86-64 Linux; elsewhere `native_level()` is 0 and the engine runs on torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch

from ...errors import EngineError
from ..models import Model
from .batch import Batch
from .pages import PAGE_SIZE
from .rope import rope_tables
from .sampler import Masks, Picks

LEVELS = ("torch", "avx512-vnni", "avx512-vnni-bf16", "amx")
"""Names of what `native_level` returns."""

_P, _I = ctypes.c_void_p, ctypes.c_int32


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("packed", _P), ("scale", _P), ("offset", _P), ("bias", _P), ("out", _I), ("in_", _I), ("padded_in", _I),
    )  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attn_norm", _P), ("mlp_norm", _P), ("q_norm", _P), ("k_norm", _P),
        ("qkv", _Matrix), ("o", _Matrix), ("gate_up", _Matrix), ("down", _Matrix),
    )  # fmt: skip


class _Network(ctypes.Structure):
    _fields_ = (
        ("layers", _I), ("hidden", _I), ("intermediate", _I), ("heads", _I), ("kv_heads", _I), ("head_dim", _I),
        ("eps", ctypes.c_float), ("attention_scale", ctypes.c_float), ("layer", ctypes.POINTER(_Layer)),
        ("final_norm", _P), ("embed", _P), ("cos", _P), ("sin", _P), ("lm_head", _Matrix),
        ("keys", _P), ("values", _P), ("layer_stride", ctypes.c_int64),
    )  # fmt: skip


class _Group(ctypes.Structure):
    _fields_ = (
        ("first_row", _I), ("rows", _I), ("first_entry", _I), ("pages", _I), ("page_position", _I), ("phase", _I),
    )  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = (
        ("rows", _I), ("groups", _I), ("tokens", _P), ("positions", _P), ("slots", _P), ("group", _P),
        ("row_list", _P), ("page_list", _P),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("._kernels", __package__)
    if spec is None or spec.origin is None:
        return None  # built without a compiler
    library = ctypes.CDLL(spec.origin)
    library.still_workspace_new.restype = _P
    for name, arguments in {
        "still_workspace_free": [_P],
        "still_workspace_reserve": [_P, _P, _I],
        "still_workspace_tiles": [_P, _P, _P],
        "still_forward": [_I, _P, _P, _P, _P],
        "still_logits": [_I, _P, _P, _I, _P, _P],
        "still_pick": [_I, _P, _I, _I, _P, _P, _P],
    }.items():
        getattr(library, name).argtypes = arguments
    return library


@lru_cache(maxsize=1)
def native_level() -> int:
    """Which instruction set the compiled decoder uses here, an index into `LEVELS`; 0: it cannot run."""
    library = _library()
    return int(library.still_level()) if library is not None else 0


def runs_natively(model: Model) -> bool:
    """Whether the compiled decoder covers this model: int8, heads of up to 256 in multiples of 16, groups of up to 16."""
    spec = model.spec
    group = spec.num_heads // spec.num_kv_heads
    return (
        model.quantization == "int8"
        and spec.head_dim % 16 == 0
        and spec.head_dim <= 256
        and group <= 16
        and spec.intermediate_size % 16 == 0
        and spec.sliding_window is None
    )


class NativeDecoder:
    """Same contract as `TorchDecoder`. Row results are bit-equal whatever the batch, the cache and the chunks are: integer
    products are exact, and each row's attention sums its key blocks in the order of its sequence."""

    def __init__(self, model: Model, num_pages: int, max_context: int) -> None:
        library = _library()
        assert library is not None
        self._library, self._level = library, native_level()
        self._keep: list[Any] = []  # memory that the C structures point to
        spec, weights = model.spec, model.weights
        self._vocab, self._hidden = spec.vocab_size, spec.hidden_size
        cos, sin = rope_tables(spec, max_context)
        half = spec.head_dim // 2
        stride = num_pages * PAGE_SIZE * spec.num_kv_heads * spec.head_dim
        # bf16; calloc hands out memory only where it is written, and zeros are what unwritten tokens must be
        self._keys, self._values = (
            np.zeros((spec.num_layers, num_pages, stride // num_pages), dtype=np.uint16) for _ in range(2)
        )
        layers = (_Layer * spec.num_layers)(*(self._layer(weights, i) for i in range(spec.num_layers)))
        self._keep.append(layers)
        self._network = _Network(
            layers=spec.num_layers, hidden=spec.hidden_size, intermediate=spec.intermediate_size,
            heads=spec.num_heads, kv_heads=spec.num_kv_heads, head_dim=spec.head_dim, eps=spec.rms_eps,
            attention_scale=spec.head_dim**-0.5, layer=layers, final_norm=self._pointer(weights["norm"].float()),
            embed=self._pointer(weights["embed"].to(torch.bfloat16)),
            cos=self._pointer(cos[:, :half]), sin=self._pointer(sin[:, :half]), lm_head=self._matrix(weights, "lm_head"),
            keys=self._keys.ctypes.data, values=self._values.ctypes.data,
            layer_stride=stride,
        )  # fmt: skip
        self._workspace = library.still_workspace_new()
        library.still_release_team()

    def __del__(self) -> None:
        if hasattr(self, "_workspace"):
            self._library.still_workspace_free(self._workspace)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the hidden states, float32 [rows, hidden], after the final norm; writes keys and values to the pool."""
        rows = len(batch.tokens)
        groups, row_list, page_list = _groups(batch)
        tokens, positions = batch.tokens.astype(np.int32), batch.positions.astype(np.int32)
        step = _Step(
            rows=rows, groups=len(groups), tokens=tokens.ctypes.data, positions=positions.ctypes.data,
            slots=batch.slots.ctypes.data, group=ctypes.addressof(groups), row_list=row_list.ctypes.data,
            page_list=page_list.ctypes.data,
        )  # fmt: skip
        network = ctypes.byref(self._network)
        self._reserve(rows)
        if self._library.still_workspace_tiles(self._workspace, network, ctypes.byref(step)):
            raise EngineError(f"no memory to plan a step of {rows} rows")
        out = torch.empty(rows, self._hidden)
        self._library.still_forward(self._level, network, ctypes.byref(step), self._workspace, out.data_ptr())
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, hidden] → float32 [rows, vocab]."""
        hidden = hidden.contiguous()
        out = torch.empty(len(hidden), self._vocab)
        self._reserve(len(hidden))
        network = ctypes.byref(self._network)
        self._library.still_logits(
            self._level, network, hidden.data_ptr(), len(hidden), self._workspace, out.data_ptr()
        )
        return out

    def pick(self, logits: torch.Tensor, masks: Masks) -> Picks:
        """Best allowed token and normalizer of each row; see `sampler.pick`."""
        rows, vocab = logits.shape
        tokens, normalizers = np.empty(rows, dtype=np.int32), np.empty(rows, dtype=np.float32)
        self._library.still_pick(
            self._level, logits.data_ptr(), rows, vocab, masks.ctypes.data, tokens.ctypes.data, normalizers.ctypes.data
        )
        return Picks(tokens.tolist(), normalizers.tolist())

    def copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole pages (source, target), one pair after the other: a target may be a later pair's source."""
        for pool in (self._keys, self._values):
            for source, target in pairs:
                pool[:, target] = pool[:, source]

    def _reserve(self, rows: int) -> None:
        if self._library.still_workspace_reserve(self._workspace, ctypes.byref(self._network), rows):
            raise EngineError(f"no memory for a step of {rows} rows: lower max_rows")

    def _layer(self, weights: dict[str, torch.Tensor], index: int) -> _Layer:
        prefix = f"layers.{index}"
        norms = {name: weights.get(f"{prefix}.{name}") for name in ("attn_norm", "mlp_norm", "q_norm", "k_norm")}
        return _Layer(
            **{name: None if norm is None else self._pointer(norm.float()) for name, norm in norms.items()},
            **{name: self._matrix(weights, f"{prefix}.{name}") for name in ("qkv", "o", "gate_up", "down")},
        )

    def _matrix(self, weights: dict[str, torch.Tensor], name: str) -> _Matrix:
        """Pack int8 [out, in] into panels [out / 16][in / 4][16][4], padded with zeros (see native/network.h)."""
        weight = weights[f"{name}.q"]
        out, width = weight.shape
        padded_out, padded_in = -(-out // 32) * 32, -(-width // 64) * 64
        padded = torch.nn.functional.pad(weight, (0, padded_in - width, 0, padded_out - out)).contiguous()
        # Four int8 move as one int32, and ones multiply faster than torch sums int8.
        packed = padded.view(torch.int32).view(padded_out // 16, 16, padded_in // 4).transpose(1, 2).contiguous()
        sums = torch._int_mm(padded, torch.ones(padded_in, 8, dtype=torch.int8))[:, 0]
        bias = weights.get(f"{name}.bias")
        pad = (0, padded_out - out)
        return _Matrix(
            packed=self._pointer(packed),
            scale=self._pointer(torch.nn.functional.pad(weights[f"{name}.scale"].float(), pad)),
            offset=self._pointer(sums * 128),
            bias=None if bias is None else self._pointer(torch.nn.functional.pad(bias.float(), pad)),
            out=out, in_=width, padded_in=padded_in,
        )  # fmt: skip

    def _pointer(self, tensor: torch.Tensor) -> int:
        tensor = tensor.contiguous()
        self._keep.append(tensor)
        return tensor.data_ptr()


def _groups(batch: Batch) -> tuple[Any, Any, Any]:
    """Shared runs by depth, then every part's private pages, as C groups with their row and page lists."""
    rows: list[Any] = []
    pages: list[int] = []
    fields: list[tuple[int, ...]] = []
    first_row = 0
    phase = 0

    def add(members: list[Any], begin: int, end: int) -> None:
        nonlocal first_row
        count = sum(part.rows for part in members)
        fields.append((first_row, count, len(pages), end - begin, begin, phase))
        rows.extend(np.arange(part.row, part.row + part.rows, dtype=np.int32) for part in members)
        pages.extend(page.index for page in members[0].chunk.sequence.pages[begin:end])
        first_row += count

    for _, runs in groupby(sorted(batch.runs, key=lambda run: run.depth), key=lambda run: run.depth):
        for run in runs:
            add(run.parts, run.begin, run.end)
        phase += 1
    for part in batch.parts:
        add([part], part.covered, part.num_pages)
    groups = (_Group * len(fields))(*(_Group(*values) for values in fields))
    return groups, np.concatenate(rows), np.array(pages, dtype=np.int32)
