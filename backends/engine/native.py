"""The compiled decoder: int8, int4 or bf16 weights, bf16 pages, one C call per step (see native/).

Needs Linux, on x86-64 with AVX2 (AVX-VNNI, AVX-512 VNNI, BF16 and AMX are used where they are) or on Arm with NEON's dot
products; elsewhere `native_level()` is 0 and the engine runs on torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ...errors import EngineError
from ..models import Adapter, LowRank, Model
from ..models.spec import ACTIVATIONS
from . import kernels
from .batch import Batch
from .packing import Packer
from .pages import PAGE_SIZE
from .rope import local_rope_tables, rope_tables
from .sampler import Masks, Picks


def runs_natively(model: Model) -> bool:
    """Whether the compiled decoder covers this model: not fp32, heads of up to 256 in 16s, groups of up to 16."""
    spec = model.spec
    group = spec.num_heads // spec.num_kv_heads
    inputs = (spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim)
    if model.quantization == "int4" and any(width % 32 for width in inputs):
        return False
    return (
        model.quantization != "fp32"
        and spec.head_dim % 16 == 0
        and spec.head_dim <= 256
        and group <= 16
        and spec.intermediate_size % 16 == 0
    )


class NativeDecoder:
    """Same contract as `TorchDecoder`. Row results are bit-equal whatever the batch, the cache and the chunks are: integer
    products are exact, and each row's attention sums its key blocks in the order of its sequence."""

    def __init__(self, model: Model, num_pages: int, max_context: int) -> None:
        library = kernels.library()
        assert library is not None
        self._library, self._level = library, kernels.native_level()
        self._keep: list[Any] = []  # memory that the C structures point to
        spec, weights = model.spec, model.weights
        self._vocab, self._hidden = spec.vocab_size, spec.hidden_size
        stride = num_pages * PAGE_SIZE * spec.num_kv_heads * spec.head_dim
        # bf16; calloc hands out memory only where it is written, and zeros are what unwritten tokens must be
        self._keys, self._values = (
            np.zeros((spec.num_layers, num_pages, stride // num_pages), dtype=np.uint16) for _ in range(2)
        )
        packer = Packer(self._keep)
        layers = (kernels.Layer * spec.num_layers)(*self._layers(model, packer, max_context))
        self._keep.append(layers)
        self._network = kernels.Network(
            layers=spec.num_layers, hidden=spec.hidden_size, intermediate=spec.intermediate_size,
            heads=spec.num_heads, kv_heads=spec.num_kv_heads, head_dim=spec.head_dim,
            activation=ACTIVATIONS.index(spec.activation), eps=spec.rms_eps, attention_scale=spec.attention_scale,
            embed_scale=spec.embed_scale, layer=layers, final_norm=packer.pointer(weights["norm"].float()),
            embed=packer.pointer(weights["embed"]) if "embed" in weights else None,
            lm_head=kernels.Matrix(**packer.matrix(weights, "lm_head")),
            keys=self._keys.ctypes.data, values=self._values.ctypes.data,
            layer_stride=stride,
        )  # fmt: skip
        # Weak: an adapter that was unloaded, and that no sequence uses any more, takes its structures along.
        self._adapter_layers: WeakKeyDictionary[Adapter, tuple[Any, list[Any]]] = WeakKeyDictionary()
        self._workspace = library.still_workspace_new()
        library.still_release_team()
        for name in set(weights) - {"embed"}:
            library.still_page_out(weights[name].data_ptr(), weights[name].nbytes)
        library.still_trim()

    def __del__(self) -> None:
        if hasattr(self, "_workspace"):
            self._library.still_workspace_free(self._workspace)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the hidden states, float32 [rows, hidden], after the final norm; writes keys and values to the pool."""
        rows = len(batch.tokens)
        groups, row_list, page_list = _groups(batch)
        tokens, positions = batch.tokens.astype(np.int32), batch.positions.astype(np.int32)
        step = kernels.Step(
            rows=rows, groups=len(groups), tokens=tokens.ctypes.data, positions=positions.ctypes.data,
            slots=batch.slots.ctypes.data, group=ctypes.addressof(groups), row_list=row_list.ctypes.data,
            page_list=page_list.ctypes.data,
        )  # fmt: skip
        network = ctypes.byref(self._network)
        adapters = self._adapters(batch)
        self._reserve(rows, adapted=adapters is not None)
        if adapters is not None:
            step.adapter = adapters.ctypes.data
        if self._library.still_workspace_parts(self._workspace, network, ctypes.byref(step)):
            raise EngineError(f"no memory to plan a step of {rows} rows")
        out = torch.empty(rows, self._hidden)
        self._library.still_forward(self._level, network, ctypes.byref(step), self._workspace, out.data_ptr())
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, hidden] → float32 [rows, vocab]."""
        hidden = hidden.contiguous()
        out = torch.empty(len(hidden), self._vocab)
        self._reserve(2 * len(hidden), adapted=False)  # the head may take two rows for one
        network = ctypes.byref(self._network)
        self._library.still_logits(self._level, network, hidden.data_ptr(), len(hidden), self._workspace, out.data_ptr())
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

    def _reserve(self, rows: int, adapted: bool) -> None:
        if self._library.still_workspace_reserve(self._workspace, ctypes.byref(self._network), rows, adapted):
            raise EngineError(f"no memory for a step of {rows} rows: lower max_rows")

    def _adapters(self, batch: Batch) -> Any:
        """uint64 [rows], addresses of the rows' adapters in C (0: none); None when no row has one."""
        adapted = batch.adapted()
        if not adapted:
            return None
        addresses = np.zeros(len(batch.tokens), dtype=np.uint64)
        for adapter, rows in adapted.items():
            if adapter not in self._adapter_layers:
                self._adapter_layers[adapter] = _adapter_layers(adapter)
            addresses[rows] = ctypes.addressof(self._adapter_layers[adapter][0])
        return addresses

    def _layers(self, model: Model, packer: Packer, max_context: int) -> Iterator[kernels.Layer]:
        spec, weights = model.spec, model.weights
        half = spec.head_dim // 2
        everywhere, local = (
            [packer.pointer(table[:, :half]) for table in tables]
            for tables in (rope_tables(spec, max_context), local_rope_tables(spec, max_context))
        )
        for index in range(spec.num_layers):
            prefix = f"layers.{index}."
            window = spec.window(index)
            cos, sin = everywhere if window is None else local
            norms = {name: weights.get(prefix + name) for name in kernels.NORMS}
            yield kernels.Layer(
                **{name: None if norm is None else packer.pointer(norm.float()) for name, norm in norms.items()},
                **{name: kernels.Matrix(**packer.matrix(weights, prefix + name)) for name in kernels.MATRICES},
                cos=cos, sin=sin, window=window or 0,
            )  # fmt: skip


def _adapter_layers(adapter: Adapter) -> tuple[Any, list[Any]]:
    """An adapter as an array of C layers, and the memory they point to (tensors, which `adapter` itself also holds)."""
    keep: list[Any] = []

    def low_rank(update: LowRank | None) -> kernels.LowRank:
        if update is None:
            return kernels.LowRank(rank=0)
        ranges = np.array([update.begin, update.end], dtype=np.int32)
        keep.extend((update.a, update.b, ranges))
        return kernels.LowRank(
            a=update.a.data_ptr(), b=update.b.data_ptr(), begin=ranges[0].ctypes.data, end=ranges[1].ctypes.data,
            rank=len(update.begin),
        )  # fmt: skip

    layers = (kernels.AdapterLayer * len(adapter.layers))(
        *(kernels.AdapterLayer(**{name: low_rank(layer.get(name)) for name in kernels.MATRICES}) for layer in adapter.layers)
    )
    return layers, keep


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
    groups = (kernels.Group * len(fields))(*(kernels.Group(*values) for values in fields))
    return groups, np.concatenate(rows), np.array(pages, dtype=np.int32)
