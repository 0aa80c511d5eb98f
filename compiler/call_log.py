"""Requests to language models, as the ledger keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..backends.meter import LMCall
from .invocation import name_of
from .ledger import CallRow
from .ledger_rows import Request


def requests(calls: Iterable[LMCall]) -> list[Request]:
    """As they are kept beside the answer that they led to."""
    return [(call.model, call.prompt_tokens, call.decoded_tokens) for call in calls]


def call_rows(
    calls: Iterable[LMCall], purpose: str, run_id: str, evaluation_id: str | None = None, asked_at: str = ""
) -> Iterator[CallRow]:
    """A row per request. asked_at: tells requests of the same purpose apart that belong to no evaluation, and may be made
    again when a run is resumed."""
    owner = evaluation_id or f"{run_id}:{asked_at}"
    for number, call in enumerate(calls):
        yield CallRow(
            call_id=f"{owner}:{purpose}:{number}",
            evaluation_id=evaluation_id,
            purpose=purpose,
            number=number,
            predictor=name_of(call.module),
            model=call.model,
            prompt_tokens=call.prompt_tokens,
            cached_tokens=call.cached_tokens,
            decoded_tokens=call.decoded_tokens,
            seconds=call.seconds,
            run_id=run_id,
        )
