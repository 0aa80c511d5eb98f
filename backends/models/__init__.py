"""Models: names resolved to files, files read, converted once and mapped into memory."""

from __future__ import annotations

from .model import Model, load_model
from .source import ModelSource, resolve
from .spec import DecoderSpec
from .tokenizer import Tokenizer

__all__ = ["DecoderSpec", "Model", "ModelSource", "Tokenizer", "load_model", "resolve"]
