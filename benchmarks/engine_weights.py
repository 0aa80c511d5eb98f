"""A GGUF file's four-bit tensors in other formats, so that llama.cpp can be measured at the one it is fastest with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

OUTPUT = Path(".still") / "benchmarks"


def requantized(source: Path, target: str) -> Path:
    """Path of `source` with its Q4_1 tensors as `target` ("Q4_0", "Q8_0"; "Q4_1": the source itself); written once."""
    if target == "Q4_1":
        return source
    path = OUTPUT / f"{source.stem}.{target}.gguf"
    if not path.is_file():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        _write(source, part, gguf.GGMLQuantizationType[target])
        part.rename(path)
    return path


def _write(source: Path, path: Path, target: gguf.GGMLQuantizationType) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        data: Any = tensor.data
        kind = tensor.tensor_type
        if kind == gguf.GGMLQuantizationType.Q4_1:
            data, kind = quantize(np.asarray(dequantize(data, kind)), target), target
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
