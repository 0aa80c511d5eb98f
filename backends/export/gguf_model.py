"""A model as one GGUF file, as llama.cpp expects it, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ModelError
from ..models.checkpoint import Checkpoint
from ..models.gguf_file import tensor_name
from ..models.gguf_spec import ROPE_FACTORS
from .gguf_metadata import Entry, architecture_name, rope_factors
from .precision import shapes

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

    from ..models.spec import DecoderSpec

Array = np.ndarray[Any, np.dtype[Any]]
_BLOCK = 32
_AT_ONCE = 1 << 22  # values that the quantizers, which want several copies, get at a time
_FILE_TYPES = {
    "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q5_1": "MOSTLY_Q5_1",
    "q5_0": "MOSTLY_Q5_0", "q4_1": "MOSTLY_Q4_1", "q4_0": "MOSTLY_Q4_0",
}  # fmt: skip


def write_gguf(
    file: Path, checkpoint: Checkpoint, precision: str, entries: list[Entry], advance: Callable[[int], None]
) -> None:
    """Write the model to `file`. Matrices are in `precision`, vectors in fp32; a matrix whose rows are no whole blocks is
    in f16, and embeddings and head of a model in fewer than eight bits are in q8_0."""
    from gguf import GGML_QUANT_SIZES, GGUFWriter

    spec = checkpoint.spec
    parts = shapes(spec)
    kinds = {part: _kind(part, shape, precision) for part, shape in parts.items()}
    factors = rope_factors(spec)
    writer = GGUFWriter(file, architecture_name(spec))
    _add_entries(writer, entries, precision)
    try:
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for part, shape in parts.items():
            block, size = GGML_QUANT_SIZES[kinds[part]]
            count = int(np.prod(shape))
            writer.add_tensor_info(tensor_name(part), shape, np.dtype(np.float32), count // block * size, kinds[part])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for part in parts:
            data = _encoded(part, _arranged(spec, part, checkpoint.read(part).numpy()), kinds[part])
            writer.write_tensor_data(data)
            advance(data.nbytes)
    finally:
        writer.close()


def _add_entries(writer: Any, entries: list[Entry], precision: str) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFValueType, LlamaFileType

    for key, value, kind, inner in entries:
        if kind == "ARRAY" and len(value) == 0:
            continue  # the writer cannot say of what
        writer.add_key_value(key, value, GGUFValueType[kind], sub_type=None if inner is None else GGUFValueType[inner])
    writer.add_file_type(LlamaFileType[_FILE_TYPES[precision]])
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _kind(part: str, shape: tuple[int, ...], precision: str) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if precision not in ("f32", "f16", "bf16"):
        if shape[-1] % _BLOCK:
            return GGMLQuantizationType.F16
        if part in ("embed", "lm_head"):
            return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType[precision.upper()]


def _arranged(spec: DecoderSpec, part: str, values: Array) -> Array:
    """Rows in llama.cpp's order: in a head of a Llama's q and k the two rotary halves alternate (convert_hf_to_gguf.py)."""
    name = part.rpartition(".")[2] if not part.endswith(".bias") else part.split(".")[-2]
    heads = {"q": spec.num_heads, "k": spec.num_kv_heads}.get(name)
    if heads is None or architecture_name(spec) != "llama":
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _encoded(part: str, values: Array, kind: GGMLQuantizationType) -> Array:
    """The bytes of a tensor in a type, as an array whose nbytes is their number."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if kind == GGMLQuantizationType.F32:
        return values
    if kind == GGMLQuantizationType.F16 and float(np.abs(values).max()) > float(np.finfo(np.float16).max):
        raise ModelError(f"{part}: a weight of {np.abs(values).max():.4g} does not fit f16: export as bf16 or f32")
    step = max(1, _AT_ONCE // values.shape[1])
    return np.concatenate([quantize(values[i : i + step], kind) for i in range(0, len(values), step)])
