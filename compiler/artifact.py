"""The artifact: a compiled program as a folder of plain files.

    manifest.json       format, versions, program schema, model, data digests, seeds, scores
    states.json         per predictor: instructions and demonstrations
    plans/<name>.txt    the compiled prompt of each predictor, to be read and diffed
    adapters/<name>/    PEFT folders of what was trained, where something was
    vectors/<name>.safetensors   of a predictor's demonstrations, where an embedder tells which are near an input
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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from ..errors import ArtifactError, ModelError
from ..optimizers.candidate import Candidate, PredictorState, adapter_name, current_state
from ..optimizers.nearest import NearestDemonstrations
from ..optimizers.similarity import rows_file
from ..signatures.bridge import Module
from ..signatures.executor import AdapterFolder
from ..signatures.knob import knob_values, named_knobs
from .canonical import digest as digest_of
from .canonical import storable
from .evidence import prompt_text
from .identity import resources
from .program_schema import check_resources, check_same, describe, import_program, rebuild
from .report import Report

FORMAT = 1
SUMS = "SHA256SUMS"
ADAPTERS = "adapters"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PACKAGES = ("still", "dspy", "pydantic", "torch", "llguidance")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified artifact, read into memory."""

    path: Path
    manifest: dict[str, Any]
    states: dict[str, PredictorState]
    files: frozenset[str] = frozenset()
    """Names of the files whose digests were verified."""

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
        check_resources(self.manifest.get("resources", {}), program)
        for state in self.states.values():
            state.neighbours.check()
        return Candidate("artifact", "artifact", self.states, self.manifest.get("knobs", {})).apply(program)


def save_artifact(
    path: str | Path,
    program: Module,
    report: Report,
    model: dict[str, Any],
    data: dict[str, str],
    adapters: Mapping[str, Path] | None = None,
) -> Path:
    """Write the folder `path`, replacing an artifact that is there; all or nothing.

    adapters: PEFT folders by name, of which configuration and weights are kept.
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
        # Those at their default too: the program that is loaded may be made with other values.
        "knobs": {path: getattr(module, knob.name) for path, module, knob in named_knobs(program)},
        "resources": resources(program),
        "digest": content_digest(program, model),
        "report": report.to_json(),
    }
    files: dict[str, str | bytes] = {"manifest.json": _json(manifest)}
    files["states.json"] = _json({name: current_state(predictor).to_json() for name, predictor in predictors.items()})
    for name, predictor in predictors.items():
        files[f"plans/{_safe(name)}.txt"] = prompt_text(predictor) + "\n"
        if isinstance(predictor.demos, NearestDemonstrations) and predictor.demos.neighbours.embedder is not None:
            fields = sorted(predictor.signature.input_fields)
            files[_vectors(name)] = rows_file(predictor.demos.rows(fields), fields)
    try:
        for name, folder in {**_adapters(predictors), **(adapters or {})}.items():
            files |= {f"{ADAPTERS}/{_safe(name)}/{file}": (folder / file).read_bytes() for file in ADAPTER_FILES}
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, files)
    except OSError as error:
        raise ArtifactError(f"cannot write the artifact {target}: {error.strerror or error}") from error
    return target


def _adapters(predictors: Mapping[str, Any]) -> dict[str, Path]:
    """The folders of what the predictors were trained, by the name they have in an artifact."""
    found = [adapter for predictor in predictors.values() if (adapter := current_state(predictor).adapter) is not None]
    return {adapter_name(adapter.digest): checked_folder(adapter) for adapter in found}


def checked_folder(adapter: AdapterFolder) -> Path:
    """The folder of trained weights. Raises `ArtifactError` where its files are not those that were trained: a later compile
    of the same thing may have trained on."""
    from ..backends.models import adapter_digest

    try:
        found = adapter_digest(adapter.path)
    except ModelError as error:
        raise ArtifactError(f"the adapter cannot be read: {error}") from error
    if found != adapter.digest:
        raise ArtifactError(
            f"adapter {adapter.path}: its sha256 is {found[:12]}…, trained was {adapter.digest[:12]}…: save a result before "
            "the same compile is run again with a larger budget, or compile again"
        )
    return Path(adapter.path)


def content_digest(program: Module, model: Mapping[str, Any]) -> str:
    """sha256 over the program's schema, states, knobs, and the models that answer. Not in it: times, versions, and what else
    is in a report."""
    states = {name: current_state(predictor).to_json() for name, predictor in program.named_predictors()}
    names = {name: described["digest"] for name, described in model.get("pinned", {}).items()}
    answers = {"digest": model["digest"], "sampling": model["sampling"], "pinned": names}
    return digest_of([describe(program), states, knob_values(program), resources(program), answers])


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
        states = {k: PredictorState.from_json(v, folder / ADAPTERS) for k, v in json.loads(contents["states.json"]).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder}: manifest or states are malformed ({error!r}): compile again") from error
    states = {name: _with_vectors(state, folder, _vectors(name), contents) for name, state in states.items()}
    return Artifact(folder, manifest, states, frozenset(contents))


def _vectors(name: str) -> str:
    return f"vectors/{_safe(name)}.safetensors"


def _with_vectors(state: PredictorState, folder: Path, file: str, contents: Mapping[str, bytes]) -> PredictorState:
    """The state with the file of its demonstrations' vectors, where the artifact has it."""
    if file not in contents:
        return state
    return replace(state, neighbours=replace(state.neighbours, vectors=folder / file))


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


def _write(target: Path, files: Mapping[str, str | bytes]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        lines = []
        for name, text in sorted(files.items()):
            content = storable(text).encode() if isinstance(text, str) else text
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
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
    """A predictor's name as a file name, of no two names the same: names can hold `[`, `'` and `/` (dict keys)."""
    return quote(name, safe="")


