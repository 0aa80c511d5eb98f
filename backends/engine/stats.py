"""The engine's counters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """Totals since the engine started, and the state of the cache now."""

    requests: int = 0
    steps: int = 0
    prefilled_tokens: int = 0
    """Tokens computed that were known beforehand: prompts, forced and jumped text."""
    reused_tokens: int = 0
    """Prompt tokens found in the cache."""
    decoded_tokens: int = 0
    jumped_tokens: int = 0
    preemptions: int = 0
    busy_seconds: float = 0.0
    pages_total: int = 0
    pages_used: int = 0
    pages_cached: int = 0
    wasted_fraction: float = 0.0
    """Share of the slots in used pages that no known token is going to fill: the rest of each sequence's last page.
    Mean over all steps, by slots; a page that several sequences share counts once."""
    wasted_now: float = 0.0
    """The same at the last step."""
