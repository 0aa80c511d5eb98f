"""Models: names resolved to files, files read, converted once and mapped into memory."""

from __future__ import annotations

from .adapter import Adapter, LowRank, adapter_digest, load_adapter
from .model import Model, load_model
from .quantize import QUANTIZATIONS, Groups, Quantization, dequantize_groups
from .source import ModelSource, resolve
from .spec import DecoderSpec
from .tokenizer import Tokenizer

__all__ = [
    "QUANTIZATIONS",
    "Adapter",
    "DecoderSpec",
    "Groups",
    "LowRank",
    "Model",
    "ModelSource",
    "Quantization",
    "Tokenizer",
    "adapter_digest",
    "dequantize_groups",
    "load_adapter",
    "load_model",
    "resolve",
]
