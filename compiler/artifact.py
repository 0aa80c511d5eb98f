"""The artifact: a compiled program as a folder of plain files.

    manifest.json       format, versions, program schema, model, data digests, seeds, scores
    states.json         per predictor: instructions and demonstrations
    plans/<name>.txt    the compiled prompt of each predictor, to be read and diffed
    SHA256SUMS          digest of every file above, in the format of sha256sum

No pickle, no code: a single predictor is rebuilt from its schema, a user's module from the instance the caller passes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ArtifactError
from ..optimizers.candidate import Candidate, PredictorState, current_state
from ..signatures.bridge import Module
from ..signatures.knob import knob_values
from ..signatures.layout import lower
from .canonical import digest as digest_of
from .program_schema import check_same, describe, import_program, rebuild
from .report import Report

FORMAT = 1
SUMS = "SHA256SUMS"
PACKAGES = ("still", "dspy", "pydantic", "torch", "llguidance")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified artifact, read into memory."""

    path: Path
    manifest: dict[str, Any]
    states: dict[str, PredictorState]

    @property
    def report(self) -> Report:
        """The report of the compile that made it."""
        return Report.from_json(self.manifest["report"])

    @property
    def digest(self) -> str:
        """sha256 of everything that decides what the program answers; see `content_digest`."""
        return str(self.manifest.get("digest", ""))

    def program(self, program: Module | None = None, *, allow_import: bool = False) -> Module:
        """Return the compiled program, without an LM. See `load`."""
        description = self.manifest["program"]
        if program is None and description["kind"] == "module" and allow_import:
            program = import_program(description)
        if program is None:
            program = rebuild(description)
        else:
            check_same(description, program)
        return Candidate("artifact", "artifact", self.states, self.manifest.get("knobs", {})).apply(program)


def save_artifact(path: str | Path, program: Module, report: Report, model: dict[str, Any], data: dict[str, str]) -> Path:
    """Write the folder `path`, replacing an artifact that is there; all or nothing.

    Raises `ArtifactError` if `path` is something else than an artifact, or cannot be written.
    """
    target = Path(path)
    if target.exists() and not (target / SUMS).is_file():
        raise ArtifactError(f"{target} exists and is not an artifact: choose another path or remove it")
    predictors = dict(program.named_predictors())
    manifest = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in PACKAGES},
        "program": describe(program),
        "model": model,
        "data": data,
        "knobs": knob_values(program),
        "digest": content_digest(program, model),
        "report": report.to_json(),
    }
    files = {"manifest.json": _json(manifest)}
    files["states.json"] = _json({name: current_state(predictor).to_json() for name, predictor in predictors.items()})
    for name, predictor in predictors.items():
        demos = predictor.demos
        signature = getattr(predictor, "effective_signature", predictor.signature)
        files[f"plans/{_safe(name)}.txt"] = str(lower(signature, _shown(demos))) + "\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, files)
    except OSError as error:
        raise ArtifactError(f"cannot write the artifact {target}: {error.strerror or error}") from error
    return target


def content_digest(program: Module, model: Mapping[str, Any]) -> str:
    """sha256 over the program's schema, states, knobs, and the models that answer. Not in it: times, versions, and what else
    is in a report."""
    states = {name: current_state(predictor).to_json() for name, predictor in program.named_predictors()}
    names = {name: described["digest"] for name, described in model.get("pinned", {}).items()}
    answers = {"digest": model["digest"], "sampling": model["sampling"], "pinned": names}
    return digest_of([describe(program), states, knob_values(program), answers])


def read_artifact(path: str | Path) -> Artifact:
    """Read and verify an artifact.

    Raises `ArtifactError` for a missing or changed file, a path that leaves the folder, or another format version.
    """
    folder = Path(path)
    if not (folder / SUMS).is_file():
        raise ArtifactError(f"{folder} is not an artifact: it has no {SUMS}")
    contents = {name: _verified(folder, name, digest) for digest, name in _sums(folder)}
    for name in ("manifest.json", "states.json"):
        if name not in contents:
            raise ArtifactError(f"{folder}/{SUMS} does not list {name}: the artifact is incomplete; compile again")
    try:
        manifest = json.loads(contents["manifest.json"])
        found = manifest["format"]
        if found != FORMAT:
            raise ArtifactError(f"{folder} has format {found}, this version of Still reads {FORMAT}: compile again")
        states = {k: PredictorState.from_json(v) for k, v in json.loads(contents["states.json"]).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder}: manifest or states are malformed ({error!r}): compile again") from error
    return Artifact(folder, manifest, states)


def _sums(folder: Path) -> list[tuple[str, str]]:
    entries: list[tuple[str, str]] = []
    try:
        # Not splitlines(): it would take other control characters for line ends.
        *lines, rest = (folder / SUMS).read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{folder}/{SUMS} cannot be read: {error}") from error
    for line in [*lines, rest] if rest else lines:
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64 or line is rest:
            raise ArtifactError(f"{folder}/{SUMS} has a malformed line {line!r}: the artifact is damaged")
        entries.append((digest, name))
    return entries


def _verified(folder: Path, name: str, digest: str) -> bytes:
    relative = PurePosixPath(name)
    file = folder / relative
    # resolve() follows links: neither `..` nor a symlink may lead out of the folder.
    if relative.is_absolute() or not file.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder}/{SUMS} names {name!r}, which leaves the folder: refused")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{folder}: {name} is missing or cannot be read ({error.strerror}): compile again") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ArtifactError(f"{folder}: {name} was changed since it was saved (sha256 differs): compile again")
    return content


def _write(target: Path, files: dict[str, str]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        lines = []
        for name, text in sorted(files.items()):
            content = text.encode()
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)
            lines.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
        (temporary / SUMS).write_text("".join(lines), "utf-8")
        temporary.chmod(0o755)  # mkdtemp makes it private
        if target.exists():
            # A folder cannot be replaced in one step: move the old one aside, so that one of the two always stands.
            aside = temporary.with_name(temporary.name + "-old")
            os.replace(target, aside)
            os.replace(temporary, target)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _safe(name: str) -> str:
    """A predictor's name as a file name: names can hold `[`, `'` and `/` (dict keys)."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def _shown(demos: Any) -> list[Any]:
    """The demonstrations the plan file shows: all fixed ones, of a pool the first few."""
    count = getattr(demos, "count_per_input", None)
    return list(demos)[:count]
