"""Supervised fine-tuning: the student learns to give the answers of its rows.

The loss is the mean negative log-probability of the tokens that the model has to decide. Rows of about one length are
batched, so that little is filled up; batches come in random order, the same for the same seed.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import TrainingError
from .checkpoint import Checkpoint
from .layout import PASS_NODES
from .policy import Descent, memory_errors, peak_memory
from .row import Row
from .student import Student

MIN_ROWS = 8
PASS_TOKENS = PASS_NODES
"""In one forward and backward pass: a batch of longer rows is computed in parts, whose gradients are added."""
FEW_ROWS = 1000
"""Below it a batch is 8 by default, else 16. Measured on 600 rows and on 2,000 and more (docs/benchmarks.md): half the batch
is twice the steps, which few rows need, for a quarter more time."""
SAVE_SECONDS = 60.0
"""Between two checkpoints within an epoch."""
CHECKPOINT = "checkpoint"
"""In the folder of a training: where it goes on from."""
SAMPLED = 8
"""Numbers of each frozen matrix by which one model is told from another."""


@dataclass(frozen=True, slots=True)
class SftSettings:
    """How to train on rows. batch: rows per step; None: 16, or 8 of fewer than 1,000 rows. warmup: share of the steps in
    which the learning rate rises; then it falls linearly to 0. clip: largest norm of a gradient. patience: epochs without a
    better score on dev before training ends."""

    learning_rate: float = 2e-3
    epochs: int = 3
    batch: int | None = None
    warmup: float = 0.05
    clip: float = 1.0
    patience: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name}={value}: give at least 1")
        if not 0.0 <= self.warmup < 1.0:
            raise TrainingError(f"warmup={self.warmup}: give a share of the steps, 0 to below 1")

    def batch_of(self, rows: int) -> int:
        """Rows per step of a training on so many rows."""
        return self.batch or (8 if rows < FEW_ROWS else 16)


@dataclass(frozen=True, slots=True)
class SftStep:
    """One step, as it was measured before its update."""

    step: int
    steps: int
    loss: float
    tokens: int
    """Prompts included, as they went through the model."""
    seconds: float
    """Of training until now, without those of measuring on dev."""
    remaining: float
    """Seconds that the steps to come will take."""

    def __str__(self) -> str:
        speed = self.tokens / max(self.seconds, 1e-9)
        left = f"{int(self.remaining // 60)}:{int(self.remaining % 60):02d}"
        return f"step {self.step}/{self.steps}, loss {self.loss:.3f}, {speed:.0f} tokens/s, {left} left"


@dataclass(slots=True)
class SftRecord:
    """What training did."""

    settings: SftSettings
    rows: int
    losses: list[float] = field(default_factory=list)
    """Of each step."""
    scores: list[float] = field(default_factory=list)
    """On dev, after each epoch."""
    tokens: int = 0
    seconds: float = 0.0
    memory: int = 0
    """Bytes that the process had at most (on CUDA: what torch had), the engine beside the student included."""

    @property
    def tokens_per_second(self) -> float:
        """Prompts included."""
        return self.tokens / max(self.seconds, 1e-9)


Measure = Callable[[Path], float]
"""The score on dev of the adapter in a PEFT folder."""


def train_sft(
    student: Student,
    rows: Sequence[Row],
    settings: SftSettings | None = None,
    *,
    folder: Path,
    measure: Measure | None = None,
    progress: Callable[[SftStep], None] | None = None,
) -> SftRecord:
    """Train the student in place; in the end `folder / "best"` holds the adapter that did best on dev (without
    `measure`, the last), and the student is at it. A training that was killed goes on from its last checkpoint in `folder`.

    Raises `TrainingError` for too few rows before anything is computed, where loss or gradient stop being numbers, and where
    memory runs out.
    """
    settings = settings or SftSettings()
    rows = [row for row in rows if any(row.loss)]  # where the grammar forces all, there is nothing to learn
    if len(rows) < MIN_ROWS:
        raise TrainingError(f"{len(rows)} rows to train on: at least {MIN_ROWS} are needed; give more examples")
    return _Training(student, rows, settings, folder, measure, progress).run()


def epochs_measured(folder: Path) -> int:
    """How many epochs of a training that was broken off in this folder were measured, by its last checkpoint."""
    for name in (CHECKPOINT, f"{CHECKPOINT}.old"):  # the second is all there is where it was killed while it saved
        with suppress(OSError, ValueError, KeyError, TypeError):
            return len(json.loads((folder / name / "progress.json").read_text("utf-8"))["scores"])
    return 0


@dataclass(slots=True)
class _Training:
    student: Student
    rows: list[Row]
    settings: SftSettings
    folder: Path
    measure: Measure | None
    progress: Callable[[SftStep], None] | None
    record: SftRecord = field(init=False)
    descent: Descent = field(init=False)
    checkpoint: Checkpoint = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.record = SftRecord(replace(settings, batch=self._batch), len(self.rows))
        self.descent = Descent(
            self.student, learning_rate=settings.learning_rate, steps=settings.epochs * self._per_epoch,
            warmup=settings.warmup, clip=settings.clip,
        )  # fmt: skip
        measured = self.measure is not None
        parts = [settings, self.student.precision, _adapter(self.student), _base(self.student), measured, self.rows]
        self.checkpoint = Checkpoint(self.folder / CHECKPOINT, hashlib.sha256(repr(parts).encode()).hexdigest())

    @property
    def _batch(self) -> int:
        return self.settings.batch_of(len(self.rows))

    @property
    def _per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self._batch)

    def run(self) -> SftRecord:
        done = self._resume()
        with memory_errors(f"give batch={max(1, self._batch // 2)}, fewer target modules, or shorter prompts"):
            while not self._is_over(done):
                done = self._epoch(done)
        if self.measure is None:
            self.student.save(self.folder / "best")
        self.student.load(self.folder / "best")
        self.checkpoint.remove()
        self.record.memory = peak_memory()
        return self.record

    def _resume(self) -> int:
        """The number of steps that were taken before."""
        found = self.checkpoint.restore(self.student, self.descent)
        if found is None:
            return 0
        self.record.losses, self.record.scores = found["losses"], found["scores"]
        self.record.tokens, self.record.seconds = found["tokens"], found["seconds"]
        return len(self.record.losses)

    def _epoch(self, done: int) -> int:
        epoch, skip = divmod(done, self._per_epoch)
        began, before = time.perf_counter(), self.record.seconds
        saved = began
        for batch in _batches(self.rows, self._batch, self.settings.seed, epoch)[skip:]:
            self._step(batch)
            now = time.perf_counter()
            self.record.seconds = before + now - began
            done += 1
            self._tell(done)
            if now - saved > SAVE_SECONDS:
                self._save()
                saved = now
        self._save()
        return done

    def _step(self, batch: Sequence[Row]) -> None:
        import torch

        decided, loss = sum(row.decided for row in batch), 0.0
        for part in _parts(batch):
            logprobs = torch.cat(self.student.token_logprobs(part))
            loss += self.descent.add(-logprobs.sum() / decided)
        self.record.losses.append(loss)
        self.descent.take()
        self.record.tokens += sum(len(row.tokens) for row in batch)

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            steps, record = self.settings.epochs * self._per_epoch, self.record
            remaining = record.seconds / done * (steps - done)
            self.progress(SftStep(done, steps, record.losses[-1], record.tokens, record.seconds, remaining))

    def _measure(self, epoch: int) -> None:
        assert self.measure is not None
        # A folder of its own for each epoch: the engine knows adapters by their content, and reads this one at its leisure.
        score = self.measure(self.student.save(self.folder / f"epoch-{epoch}"))
        if score > max(self.record.scores, default=-math.inf):
            self.student.save(self.folder / "best")
        self.record.scores.append(score)
        self._save()

    def _is_over(self, done: int) -> bool:
        epoch, scores = done // self._per_epoch, self.record.scores
        # Here and not after the epoch: a training may have been killed while it measured.
        if self.measure is not None and len(scores) < epoch:
            self._measure(epoch)
        best = scores.index(max(scores)) if scores else 0
        enough = bool(scores) and (scores[best] >= 1.0 or len(scores) - 1 - best >= self.settings.patience)
        return enough or epoch == self.settings.epochs

    def _save(self) -> None:
        record = self.record
        given = {"losses": record.losses, "scores": record.scores, "tokens": record.tokens, "seconds": record.seconds}
        self.checkpoint.save(self.student, self.descent, given)


def _adapter(student: Student) -> list[Any]:
    """Shape, scale and place of what it trains."""
    config = student.network.peft_config["default"]
    shapes = [tuple(parameter.shape) for parameter in student.parameters()]
    return [config.r, config.lora_alpha, config.use_rslora, config.lora_dropout, sorted(config.target_modules), shapes]


def _base(student: Student) -> list[Any]:
    """Enough of the frozen weights to tell a model from others of its shape."""
    frozen = [(name, p.detach().flatten()) for name, p in student.network.named_parameters() if not p.requires_grad]
    # Of what is quantized the form is packed: norms and embeddings, which are not, tell enough.
    return [(name, len(p), p[:: max(1, len(p) // SAMPLED)].tolist()) for name, p in frozen if p.is_floating_point()]


def _batches(rows: Sequence[Row], size: int, seed: int, epoch: int) -> list[list[Row]]:
    drawing = random.Random(f"{seed} {epoch}")
    # The tie-breaker differs from epoch to epoch, so that a row does not always meet the same ones.
    order = sorted(rows, key=lambda row: (len(row.tokens), drawing.random()))
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    drawing.shuffle(batches)
    return batches


def _parts(batch: Sequence[Row]) -> list[list[Row]]:
    """The rows in their order, in parts of at most `PASS_TOKENS` tokens or one row."""
    parts: list[list[Row]] = []
    room = 0
    for row in batch:
        if not parts or len(row.tokens) > room:
            parts.append([])
            room = PASS_TOKENS
        parts[-1].append(row)
        room -= len(row.tokens)
    return parts
