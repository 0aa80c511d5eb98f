"""Two halves of a batch at a time, each on half of the processor's threads.

A small model's step is thousands of short operations. Splitting each among threads that wait for each other is as fast
on a machine at rest; beside two busy programs halves of a batch, which need not wait, took 2.3 s a step instead of 4.7 s.
Forward passes run in threads of their own, and their graphs are run backwards the same way when the gradient of the
joined result is known, so that a loss over the whole batch is what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

LANES = 2
"""More would keep Python's one interpreter lock busy: it is held for a tenth of a second per pass of 30 layers."""
T = TypeVar("T")
R = TypeVar("R")


def in_lanes(
    forward: Callable[[Sequence[T]], Tensor], items: Sequence[T], parameters: Sequence[Tensor]
) -> Tensor:  # fmt: skip
    """`forward(items)`, a vector with as many elements per item as it likes, computed as two halves, the first and the last
    items. Gradients of `parameters` are summed in that order, so the same items give the same numbers. Where the caller has
    gradients off, no graph is built."""
    import torch

    def plain(part: Sequence[T]) -> Tensor:
        with torch.no_grad():  # a mode of each thread: the caller's is not theirs
            return forward(part)

    half = -(-len(items) // LANES)
    halves = [items[i : i + half] for i in range(0, len(items), half)]
    if not torch.is_grad_enabled():
        return torch.cat(_together(plain, halves))
    result: Tensor = _function().apply(forward, halves, *parameters)
    return result


@contextmanager
def _shared_threads() -> Iterator[int]:
    """Threads of a lane; torch's setting is as it was after the block."""
    import torch

    # The setting is one of the process, and is taken over by threads that begin to compute within the block.
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // LANES))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _together(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    import torch

    with _shared_threads() as threads, ThreadPoolExecutor(LANES, initializer=lambda: torch.set_num_threads(threads)) as pool:
        return list(pool.map(work, parts))


@cache
def _function() -> Any:
    """The operation; made at the first use, since torch is not imported before."""
    import torch

    class Lanes(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, forward: Callable[[Any], Tensor], parts: Sequence[Any], *parameters: Tensor) -> Tensor:
            def run(part: Any) -> Tensor:
                with torch.enable_grad():
                    return forward(part)

            context.halves, context.parameters = _together(run, parts), parameters
            return torch.cat([half.detach() for half in context.halves])

        @staticmethod
        def backward(context: Any, given: Tensor) -> Any:
            parts = list(zip(context.halves, torch.split(given, [len(half) for half in context.halves]), strict=True))
            context.halves = None

            def run(part: tuple[Tensor, Tensor]) -> Any:
                return torch.autograd.grad(part[0], context.parameters, part[1], allow_unused=True)

            first, *others = _together(run, parts)
            total = list(first)
            for other in others:
                for i, gradient in enumerate(other):
                    if gradient is not None:
                        total[i] = gradient if total[i] is None else total[i].add_(gradient)
            return None, None, *total

    return Lanes
