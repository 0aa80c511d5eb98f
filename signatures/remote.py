"""LMs that cannot run plans, servers mostly: what calls them is a backend's, so signatures only say what they need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class RemoteBackend(Protocol):
    """Calls an LM with messages; every value in its answers is of its field's type, dspy's own types excepted."""

    def call_remote(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Values by field, per answer. Raises `ConstraintError` when no valid answer came after bounded retries."""

    async def acall_remote(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Async twin of `call_remote`."""


remote_backend: Callable[[], RemoteBackend]
"""Finds the backend when it is first needed. The front door sets it, so it is there whatever was imported first."""
