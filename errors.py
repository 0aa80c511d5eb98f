"""The exceptions of Still. Every error a user can meet derives from `StillError`.

A message names the field or thing at fault, the value, and the remedy, in that order.
"""

from __future__ import annotations


class StillError(Exception):
    """Base of every error that Still raises on purpose."""


class SignatureError(StillError):
    """A signature or program cannot be lowered: an unsupported or impossible field type, a missing input."""


class ConstraintError(StillError):
    """A model's output stayed outside its field's type after all retries, or a value cannot be written as text."""


class DatasetError(StillError):
    """A dataset cannot be read, split or checked: names file, row and field."""


class ModelError(StillError):
    """A model cannot be found, downloaded, verified or read."""


class EngineError(StillError):
    """The engine refuses or cannot finish a request: too long for the cache, bad token ids, broken logits."""


class CancelledError(EngineError):
    """The request was cancelled, or the engine was closed, before it finished."""


class MetricError(StillError):
    """A metric raised or returned something that is not a score from 0 to 1."""


class LedgerError(StillError):
    """The ledger file cannot be opened, is of another version, or a query failed."""


class ArtifactError(StillError):
    """An artifact is damaged, incomplete, of another version, or does not match the program given."""


class RetrievalError(StillError):
    """A corpus cannot be opened, written or searched: names file, document or parameter."""


class TrainingError(StillError):
    """Training cannot begin or go on: too few rows, a setting, a loss that is no number, no memory."""
