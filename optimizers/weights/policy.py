"""What learns from preferences and rewards, and the one way it takes a step."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import TrainingError
from .row import Row

if TYPE_CHECKING:
    from torch import Tensor


class Policy(Protocol):
    """A model with an adapter that learns: the student."""

    def token_logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        """For each row the natural log-probabilities of its loss tokens, float32 [loss tokens], differentiable."""

    def reference(self, rows: Sequence[Row]) -> list[Tensor]:
        """The same of the policy as it is now, without gradients."""

    def parameters(self) -> Iterable[Tensor]:
        """What is trained."""

    def save(self, folder: Path) -> Any:
        """Write the adapter as a PEFT folder."""


class Descent:
    """AdamW over a policy's parameters, with a linear warm-up and a linear way down to 0, or a constant rate.

    A step is taken only if loss and gradient are numbers: `TrainingError` otherwise, with the parameters as they were.
    """

    def __init__(
        self, policy: Policy, *, learning_rate: float, steps: int, warmup: float = 0.0, clip: float = 1.0,
        linear: bool = True,
    ) -> None:  # fmt: skip
        import torch

        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise TrainingError(f"learning_rate={learning_rate}: give a number above 0")
        self._parameters = list(policy.parameters())
        self._optimizer = _adamw(self._parameters, learning_rate)
        rise = warmup * steps

        def rate(step: int) -> float:
            if step < rise:
                return (step + 1) / (math.floor(rise) + 1)
            return max(0.0, (steps - step) / max(1.0, steps - rise)) if linear else 1.0

        self._rate = rate
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, rate)
        self._clip, self._taken = clip, 0

    def add(self, loss: Tensor) -> float:
        """Add the gradient of a loss to what the next step follows. Returns the loss."""
        value = float(loss.detach())
        if not math.isfinite(value):
            self._optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"loss={value} in step {self._taken + 1}: training diverged; take a smaller learning_rate "
                "(a third of this one), a larger beta, or precision='fp32'"
            )
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        return value

    def take(self) -> float:
        """Take the step. Returns the norm of the gradient before it was clipped."""
        import torch

        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip))
        if not math.isfinite(norm):
            self._optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"gradient norm={norm} in step {self._taken + 1}: training diverged; take a smaller learning_rate, or "
                "precision='fp32'"
            )
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._taken += 1
        return norm

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs besides the parameters: the moments of each, and the number of steps."""
        import torch

        found = {
            f"{i}.{name}": torch.as_tensor(value)
            for i, parameter in enumerate(self._parameters)
            for name, value in self._optimizer.state.get(parameter, {}).items()
        }
        return {**found, "taken": torch.tensor(self._taken)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        import torch

        counts = not isinstance(self._optimizer, torch.optim.AdamW)
        for key, value in state.items():
            if key != "taken":
                index, name = key.split(".", 1)
                parameter = self._parameters[int(index)]
                # torch counts steps in a tensor on the CPU, bitsandbytes in an int.
                kept = value.clone() if name == "step" else value.to(parameter.device, copy=True)
                self._optimizer.state[parameter][name] = int(kept) if name == "step" and counts else kept
        self._taken = int(state["taken"])
        self._schedule.last_epoch = self._taken
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self._rate(self._taken)


def _adamw(parameters: Sequence[Tensor], learning_rate: float) -> Any:
    """torch's AdamW; on CUDA, where bitsandbytes is installed, its paged one, whose moments go to main memory where a GPU
    runs short (Dettmers et al., QLoRA, 2023)."""
    import torch

    if parameters[0].is_cuda and find_spec("bitsandbytes"):
        from bitsandbytes.optim import PagedAdamW

        return PagedAdamW(parameters, lr=learning_rate, weight_decay=0.0)
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)


def peak_memory() -> int:
    """Bytes that torch had at most on CUDA, else the process; 0 where the system does not say."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Turn what torch raises when memory runs out into a `TrainingError` with a remedy."""
    try:
        yield
    except MemoryError as error:
        raise TrainingError(f"training ran out of memory ({error}): {remedy}") from error
    except RuntimeError as error:
        text = str(error)
        if "out of memory" not in text and "allocate memory" not in text:
            raise
        raise TrainingError(f"training ran out of memory ({text.splitlines()[0]}): {remedy}") from error


@contextmanager
def parameters_at(policy: Policy, values: Sequence[Tensor]) -> Iterator[None]:
    """Within the block the policy's parameters have these values; after it their own again, bit for bit."""
    import torch

    parameters = list(policy.parameters())
    now = snapshot(policy)
    try:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, now, strict=True):
                parameter.copy_(value)


def snapshot(policy: Policy) -> list[Tensor]:
    """A copy of the parameters as they are now: a LoRA's are small."""
    return [parameter.detach().clone() for parameter in policy.parameters()]
