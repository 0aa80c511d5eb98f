"""A predictor's answer while it is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Generic, TypeVar, cast

from ..errors import StillError
from .executor import Completion, Piece
from .prediction import Answer, prediction

S = TypeVar("S")


class _Finished(Generic[S]):
    """What is known once the last piece was read."""

    def __init__(self, signature: Any) -> None:
        self._signature = signature
        self._completion: Completion | None = None

    @property
    def prediction(self) -> S:
        """The answer, as a call would have returned it. Raises `StillError` before the last piece was read."""
        if self._completion is None:
            raise StillError("the answer is not finished: read the stream to its end first")
        return cast(S, prediction([Answer(self._completion)], self._signature))


class PieceStream(_Finished[S]):
    """Iterate over it once for the pieces of text; leaving the loop early cancels the call."""

    def __init__(self, items: Iterator[Piece | Completion], signature: Any) -> None:
        super().__init__(signature)
        self._items = items

    def __iter__(self) -> Iterator[Piece]:
        try:
            for item in self._items:
                if isinstance(item, Completion):
                    self._completion = item
                else:
                    yield item
        finally:  # the stream holds the items: they would go on until nobody holds the stream
            if (close := getattr(self._items, "close", None)) is not None:
                close()


class AsyncPieceStream(_Finished[S]):
    """`PieceStream` for `async for`."""

    def __init__(self, items: AsyncIterator[Piece | Completion], signature: Any) -> None:
        super().__init__(signature)
        self._items = items

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            async for item in self._items:
                if isinstance(item, Completion):
                    self._completion = item
                else:
                    yield item
        finally:
            await aclose(self._items)


async def aclose(items: AsyncIterator[Any]) -> None:
    """End an iterator early, where it can be: a generator."""
    if (close := getattr(items, "aclose", None)) is not None:
        await close()
