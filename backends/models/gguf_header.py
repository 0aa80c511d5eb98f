"""The header of a GGUF file: metadata and the table of tensors, every length checked against the file's size.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian). The `gguf`
package's reader trusts the lengths it meets (a flipped bit in one makes it loop for hours) and takes seconds for a
vocabulary, so only its tables of types are used here.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelError

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `shape` is [out, in] (GGUF's own order reversed), `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    size: int


@dataclass(frozen=True)
class GGUFHeader:
    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    kinds: dict[str, tuple[int, int | None]]
    """Of each metadata key the type of its value, and of an array also that of its items."""


def read_header(path: Path) -> GGUFHeader:
    """Parse the header. Raises ModelError for anything a whole GGUF file of a known version cannot contain."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(path, data).header()
    except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
        raise ModelError(f"{path}: cannot be read as a GGUF file ({error})") from error


class _Cursor:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.end = path, data, 0, len(data)

    def header(self) -> GGUFHeader:
        if self.data[:4] != _MAGIC:
            raise ModelError(f"{self.path}: not a GGUF file (it does not begin with 'GGUF')")
        self.at = 4
        version = self.number("I")
        if version not in (2, 3):
            raise self.damaged(f"version {version} is not supported (2 and 3, little endian, are)")
        tensor_count, pair_count = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        kinds: dict[str, tuple[int, int | None]] = {}
        for _ in range(pair_count):
            key = self.text()
            if key in metadata:
                raise self.damaged(f"key {key!r} appears twice")
            kind = self.number("I")
            begin = self.at
            metadata[key] = self.value(kind)
            kinds[key] = kind, struct.unpack_from("<I", self.data, begin)[0] if kind == _ARRAY else None
        tensors = self.tensor_table(tensor_count, metadata.get("general.alignment", 32))
        return GGUFHeader(self.path, metadata, tensors, kinds)

    def tensor_table(self, count: int, alignment: Any) -> dict[str, TensorInfo]:
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self.damaged(f"alignment {alignment!r} is not a power of two")
        rows = [self.tensor_row() for _ in self.counted(count, 24)]
        start = -(-self.at // alignment) * alignment
        table: dict[str, TensorInfo] = {}
        for name, shape, type_id, offset in rows:
            if name in table:
                raise self.damaged(f"tensor {name!r} appears twice")
            info = TensorInfo(name, shape, type_id, start + offset, self.byte_size(name, shape, type_id))
            if info.offset + info.size > self.end:
                raise self.damaged(f"tensor {name!r} ends beyond the file: it is truncated; download it again")
            table[name] = info
        return table

    def tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text()
        dims = self.number("I")
        if not 1 <= dims <= _MAX_DIMS:
            raise self.damaged(f"tensor {name!r} has {dims} dimensions")
        shape = tuple(self.number("Q") for _ in range(dims))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def byte_size(self, name: str, shape: tuple[int, ...], type_id: int) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
        except (ValueError, KeyError):
            raise self.damaged(f"tensor {name!r} has the unknown type {type_id}") from None
        if shape[-1] % block or prod(shape) == 0:
            raise self.damaged(f"tensor {name!r} of shape {list(shape)} does not fit blocks of {block}")
        return int(prod(shape) // block * size)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise self.damaged(f"unknown metadata type {kind}")
        return self.number(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return [self.text() for _ in self.counted(count, 8)]
        if kind not in _SCALARS:
            raise self.damaged(f"arrays of metadata type {kind} are not supported")
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        self.counted(count, dtype.itemsize)
        return list(np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist())

    def counted(self, count: int, least: int) -> range:
        """range(count), refused when that many things of `least` bytes cannot be in what is left of the file."""
        if count * least > self.end - self.at:
            raise self.damaged(f"{count} entries cannot fit at byte {self.at}")
        return range(count)

    def text(self) -> str:
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"a string before byte {self.at} is not UTF-8") from None

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def take(self, size: int) -> bytes:
        if size > self.end - self.at:
            raise self.damaged(f"{size} bytes are missing at byte {self.at}: it is truncated; download it again")
        self.at += size
        return self.data[self.at - size : self.at]

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: damaged or unsupported GGUF file: {what}")
