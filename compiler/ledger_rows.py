"""What a ledger holds: its tables, and one dataclass a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, TypeAdapter, ValidationError

from ..errors import DatasetError, LedgerError
from .canonical import digest, storable, to_jsonable

Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Request = tuple[str, Count, Count]
"""To a language model: its name, prompt tokens and decoded tokens."""

SCHEMA_VERSION = 5

# Times are stored without zone, in UTC. Rows refer to each other by content, without foreign keys: an evaluation may be
# written by one run and used by all later ones.
SCHEMA = """
CREATE TABLE meta (schema_version INTEGER NOT NULL);
CREATE TABLE runs (
  run_id VARCHAR PRIMARY KEY, started_at TIMESTAMP NOT NULL, finished_at TIMESTAMP, status VARCHAR NOT NULL,
  program VARCHAR NOT NULL, level VARCHAR NOT NULL, model VARCHAR NOT NULL, model_digest VARCHAR NOT NULL,
  seed BIGINT NOT NULL, config JSON NOT NULL, result JSON);
CREATE TABLE candidates (
  candidate_id VARCHAR NOT NULL, run_id VARCHAR NOT NULL, name VARCHAR NOT NULL, origin VARCHAR NOT NULL,
  state JSON NOT NULL, created_at TIMESTAMP NOT NULL, PRIMARY KEY (run_id, candidate_id));
CREATE TABLE evaluations (
  evaluation_id VARCHAR PRIMARY KEY, candidate_id VARCHAR NOT NULL, example_id VARCHAR NOT NULL, split VARCHAR NOT NULL,
  model_digest VARCHAR NOT NULL, prediction JSON, score DOUBLE, scores JSON NOT NULL, error VARCHAR,
  calls BIGINT NOT NULL, prompt_tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL,
  decoded_tokens BIGINT NOT NULL, seconds DOUBLE NOT NULL, run_id VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL);
CREATE TABLE scores (
  run_id VARCHAR NOT NULL, evaluation_id VARCHAR NOT NULL, candidate_id VARCHAR NOT NULL, example_id VARCHAR NOT NULL,
  split VARCHAR NOT NULL, score DOUBLE NOT NULL, fields JSON NOT NULL, error VARCHAR,
  PRIMARY KEY (run_id, evaluation_id));
CREATE TABLE calls (
  call_id VARCHAR PRIMARY KEY, evaluation_id VARCHAR, purpose VARCHAR NOT NULL, number BIGINT NOT NULL,
  predictor VARCHAR, model VARCHAR NOT NULL, prompt_tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL,
  decoded_tokens BIGINT NOT NULL, seconds DOUBLE, run_id VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL);
CREATE TABLE verdicts (
  verdict_id VARCHAR PRIMARY KEY, judge VARCHAR NOT NULL, score DOUBLE NOT NULL, feedback VARCHAR NOT NULL,
  calls JSON NOT NULL, run_id VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL);
CREATE TABLE answers (
  answer_id VARCHAR PRIMARY KEY, model VARCHAR NOT NULL, text VARCHAR NOT NULL, calls JSON NOT NULL,
  run_id VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL);
CREATE TABLE artifacts (
  path VARCHAR NOT NULL, digest VARCHAR NOT NULL, run_id VARCHAR NOT NULL, candidate_id VARCHAR NOT NULL,
  name VARCHAR NOT NULL, score DOUBLE NOT NULL, created_at TIMESTAMP NOT NULL, PRIMARY KEY (path, digest));
"""


def now() -> datetime:
    """The time in UTC, to the microsecond that DuckDB keeps."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A row of one table; fields are the table's columns in order."""

    TABLE: ClassVar[str]
    CONFLICT: ClassVar[str] = "ON CONFLICT DO NOTHING"
    JSON: ClassVar[frozenset[str]] = frozenset()
    KEYS: ClassVar[int] = 1
    """How many columns, from the first on, tell a row from others."""

    @classmethod
    def columns(cls) -> list[str]:
        return [column.name for column in fields(cls)]

    def to_sql(self) -> list[Any]:
        """Values to bind. Raises LedgerError where one does not fit its column."""
        try:
            checked = _CHECKERS[type(self)].validate_python(vars(self))
            return [_to_sql(getattr(checked, name), name in self.JSON) for name in self.columns()]
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise LedgerError(f"{self.TABLE}: {place}={first['input']!r:.80}: {first['msg']}; correct the row") from error
        except DatasetError as error:
            raise LedgerError(f"{self.TABLE}: {error}") from error

    @classmethod
    def from_sql(cls, values: tuple[Any, ...]) -> Self:
        pairs = zip(cls.columns(), values, strict=True)
        return cls(**{name: _from_sql(value, name in cls.JSON) for name, value in pairs})


@dataclass(frozen=True, kw_only=True)
class RunRow(LedgerRow):
    """One compile, or one call of `evaluate`. Recording the same `run_id` again replaces the row: its times are those of
    the last."""

    TABLE = "runs"
    CONFLICT = (
        "ON CONFLICT (run_id) DO UPDATE SET started_at = excluded.started_at, finished_at = excluded.finished_at, "
        "status = excluded.status, config = excluded.config, result = excluded.result"
    )
    JSON = frozenset({"config", "result"})

    run_id: str
    started_at: datetime = field(default_factory=now)
    finished_at: datetime | None = None
    status: str = "running"
    program: str
    level: str
    model: str
    model_digest: str
    seed: Integer = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class CandidateRow(LedgerRow):
    """One variant of the program in a run; `candidate_id` digests its content, `origin` is the pass that made it."""

    TABLE = "candidates"
    JSON = frozenset({"state"})

    candidate_id: str
    run_id: str
    name: str
    origin: str
    state: Mapping[str, Any]
    created_at: datetime = field(default_factory=now)


@dataclass(frozen=True, kw_only=True)
class EvaluationRow(LedgerRow):
    """One candidate on one example. `score` and `scores` (per field) from 0 to 1, by the metric of the run that wrote it;
    tokens counted, time in seconds."""

    TABLE = "evaluations"
    JSON = frozenset({"prediction", "scores"})

    evaluation_id: str
    candidate_id: str
    example_id: str
    split: str
    model_digest: str
    prediction: Any = None
    score: Rate | None = None
    scores: Mapping[str, Rate] = field(default_factory=dict)
    error: str | None = None
    calls: Count = 0
    prompt_tokens: Count = 0
    cached_tokens: Count = 0
    decoded_tokens: Count = 0
    seconds: Seconds = 0.0
    run_id: str
    created_at: datetime = field(default_factory=now)


@dataclass(frozen=True, kw_only=True)
class ScoreRow(LedgerRow):
    """What an evaluation counts in a run, which need not have written it: by that run's metric and split. There need not be
    an evaluation: what the network made of an example is not kept. Recording it again replaces the row."""

    TABLE = "scores"
    CONFLICT = (
        "ON CONFLICT (run_id, evaluation_id) DO UPDATE SET split = excluded.split, score = excluded.score, "
        "fields = excluded.fields, error = excluded.error"
    )
    JSON = frozenset({"fields"})
    KEYS = 2

    run_id: str
    evaluation_id: str
    candidate_id: str
    example_id: str
    split: str
    score: Rate
    fields: Mapping[str, Rate] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class CallRow(LedgerRow):
    """One request to a language model. purpose: "program", or what else it was for: "metric" (a judge), or the pass that
    asked; then `evaluation_id` is None. number: its place among the calls of the same evaluation, or of the run."""

    TABLE = "calls"

    call_id: str
    evaluation_id: str | None
    purpose: str
    number: Count
    predictor: str | None = None
    model: str
    prompt_tokens: Count = 0
    cached_tokens: Count = 0
    decoded_tokens: Count = 0
    seconds: Seconds | None = None
    run_id: str
    created_at: datetime = field(default_factory=now)


@dataclass(frozen=True, kw_only=True)
class VerdictRow(LedgerRow):
    """What a judge said: `verdict_id` digests the judge, its model and the question. calls: the requests that it took."""

    TABLE = "verdicts"
    JSON = frozenset({"calls"})

    verdict_id: str
    judge: str
    score: Rate
    feedback: str = ""
    calls: Sequence[Request] = ()
    run_id: str
    created_at: datetime = field(default_factory=now)


@dataclass(frozen=True, kw_only=True)
class AnswerRow(LedgerRow):
    """What a teacher answered to a pass: `answer_id` digests the model and the question. calls: the requests it took."""

    TABLE = "answers"
    JSON = frozenset({"calls"})

    answer_id: str
    model: str
    text: str
    calls: Sequence[Request] = ()
    run_id: str
    created_at: datetime = field(default_factory=now)


@dataclass(frozen=True, kw_only=True)
class ArtifactRow(LedgerRow):
    """An artifact that was saved: where, its content's digest, and the candidate it holds, with its score on dev."""

    TABLE = "artifacts"
    KEYS = 2
    CONFLICT = "ON CONFLICT (path, digest) DO UPDATE SET run_id = excluded.run_id, created_at = excluded.created_at"

    path: str
    digest: str
    run_id: str
    candidate_id: str
    name: str
    score: Rate
    created_at: datetime = field(default_factory=now)


def evaluation_key(program: str, candidate: str, example: str, model: str, **more: Any) -> str:
    """sha256 of what decides an evaluation: four digests, and `more` for all else (seed, sampling settings)."""
    return digest({"program": program, "candidate": candidate, "example": example, "model": model, "more": more})


_CHECKERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind)
    for kind in (RunRow, CandidateRow, EvaluationRow, ScoreRow, CallRow, VerdictRow, AnswerRow, ArtifactRow)
}


def _to_sql(value: Any, is_json: bool) -> Any:
    if value is None:
        return None
    if is_json:
        return storable(json.dumps(to_jsonable(value), ensure_ascii=False, separators=(",", ":")))
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None)
    return storable(value) if isinstance(value, str) else value


def _from_sql(value: Any, is_json: bool) -> Any:
    if is_json and value is not None:
        return json.loads(value)
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
