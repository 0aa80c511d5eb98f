"""Models written for other programs: PEFT and Hugging Face folders, GGUF files, Ollama's Modelfile."""

from __future__ import annotations

from .model_export import FORMATS, Conversation, Format, ModelExport, export_model

__all__ = ["FORMATS", "Conversation", "Format", "ModelExport", "export_model"]
