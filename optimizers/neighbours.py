"""`Neighbours`: which examples count as the nearest to an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..backends.retrieval.model_folder import KNOWN
from ..errors import ModelError
from .similarity import text_vectors


@dataclass(frozen=True, slots=True)
class Neighbours:
    """How the nearest are found.

    embedder: by the cosine of its vectors (a short name, a folder or a hub id); None: by words. digest: the embedder's, of
    when they were chosen. balanced: of the nearest few, those whose outputs differ. vectors: a file with the pool's vectors,
    which need then not be computed.
    """

    embedder: str | None = None
    digest: str = ""
    balanced: bool = False
    vectors: Path | None = field(default=None, compare=False)

    @classmethod
    def by(cls, embedder: str | None) -> Neighbours:
        """Those by an embedder, which is fetched if need be. Raises `ModelError` where there is no such model."""
        if embedder is None:
            return cls()
        # A folder is to be found from elsewhere too.
        name = str(Path(embedder).resolve()) if embedder not in KNOWN and Path(embedder).is_dir() else embedder
        return cls(name, text_vectors(name).digest)

    def check(self) -> None:
        """Raises `ModelError` where the embedder is not here, or is not the one they were chosen with."""
        if self.embedder is not None and (found := text_vectors(self.embedder).digest) != self.digest:
            raise ModelError(
                f"embedder {self.embedder!r} has the digest {found[:16]}, the demonstrations were chosen with "
                f"{self.digest[:16]}: put that model back in its place, or compile again"
            )

    def to_json(self) -> dict[str, Any]:
        """What is not at its default."""
        named = {} if self.embedder is None else {"embedder": self.embedder, "digest": self.digest}
        return {**named, "balanced": True} if self.balanced else named

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Neighbours:
        """Inverse of `to_json`."""
        return cls(data.get("embedder"), data.get("digest", ""), data.get("balanced", False))

    def __str__(self) -> str:
        how = "by words" if self.embedder is None else f"by {self.embedder}"
        return f"{how}, balanced" if self.balanced else how


WORDS = Neighbours()
"""By words, not balanced."""
