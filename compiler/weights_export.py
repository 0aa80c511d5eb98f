"""The weights behind a compiled program, written for other programs, with what of the program they can say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends.export import FORMATS, Conversation, Format, ModelExport, export_model
from ..backends.export.model_export import Progress
from ..backends.lm import LM
from ..backends.models import ModelSource, resolve
from ..errors import ArtifactError
from ..optimizers.candidate import asked_signature
from ..optimizers.nearest import NearestDemonstrations
from ..signatures.bridge import Module
from ..signatures.layout import lower
from ..signatures.plan import Plan, Slot
from .artifact import Artifact, checked_folder, read_artifact
from .artifact_adapter import artifact_adapters, chosen_adapter
from .dspy_state import Compiled


@dataclass(frozen=True, slots=True)
class WeightsExport:
    """What `export_weights` wrote."""

    path: Path
    format: Format
    precision: str
    """Of the matrices; "" for a PEFT folder."""
    files: tuple[Path, ...]
    lost: tuple[str, ...] = ()
    """A sentence for each thing of the compiled program that a Modelfile does not say."""


def export_weights(
    compiled: Compiled | Module | LM | str | Path,
    path: str | Path,
    *,
    to: Format,
    adapter: str | Path | None = None,
    precision: str | None = None,
    program: Module | None = None,
    allow_import: bool = False,
    progress: Progress | None = None,
) -> WeightsExport:
    """Write the model of a compiled program (an artifact's folder, a `Result`, a program) or of an LM to the new folder
    `path`, its adapter merged in; all or nothing.

    to: "peft", the adapter as a PEFT folder; "hf", a Hugging Face folder for transformers; "gguf", a file for llama.cpp;
    "modelfile", that and a Modelfile for Ollama, with the prompt of a program of one predictor as SYSTEM and MESSAGEs.
    adapter: a PEFT folder, or of an artifact's adapters the name of one; needed where predictors have several. An LM is
    written as it is without it. precision: f32, f16, bf16, for GGUF also q8_0, q5_1, q5_0, q4_1, q4_0; by default f32 for
    "hf" and f16 for GGUF. program, allow_import: as for `load`, where the artifact is of a module; only "modelfile" asks.
    progress: called with the bytes written so far and in all.

    Raises `ArtifactError` for what cannot be said or written, `ModelError` for a model or adapter that cannot be read, for
    an architecture that is not supported, and for an adapter that is another model's.
    """
    if to not in FORMATS:
        raise ArtifactError(f"format {to!r} is not known: use one of {', '.join(FORMATS)}")
    artifact = read_artifact(compiled) if isinstance(compiled, str | Path) else None
    if artifact is not None:
        source, folder = _recorded_source(artifact), _adapter(artifact, adapter)
        if to == "modelfile" and (program is not None or allow_import or artifact.manifest["program"]["kind"] != "module"):
            program = artifact.program(program, allow_import=allow_import)
    else:
        source, live = _live_source(compiled), None if isinstance(compiled, LM) else _program_of(compiled)
        folder = Path(adapter) if adapter is not None else None if live is None else _live_adapter(live)
        program = program or live
    conversation, lost = _conversation(program) if to == "modelfile" else (Conversation(), ())
    written: ModelExport = export_model(
        source, path, to, adapter=folder, precision=precision, conversation=conversation, progress=progress
    )
    return WeightsExport(written.path, written.format, written.precision, written.files, lost)


def _adapter(artifact: Artifact, adapter: str | Path | None) -> Path | None:
    if adapter is None or adapter in artifact_adapters(artifact):
        return chosen_adapter(artifact, None if adapter is None else str(adapter))
    return Path(adapter) if Path(adapter).is_dir() else chosen_adapter(artifact, str(adapter))


def _recorded_source(artifact: Artifact) -> ModelSource:
    """The model an artifact was compiled for, if the files of that name are still the same."""
    model = artifact.manifest["model"]
    if model["local"] is None:
        raise ArtifactError(
            f"{artifact.path} was compiled for {model['name']}, which is not a local model: it has no weights"
        )
    source = resolve(model["local"]["model"])
    # What follows the first slash is what the engine did with the weights: quantization, adapter.
    if (found := source.digest()) != str(model["digest"]).partition("/")[0]:
        raise ArtifactError(
            f"{artifact.path} was compiled for {model['name']} ({model['digest'][:12]}…), the model of this name is now "
            f"{found[:12]}…: an adapter fits the weights it was trained on; put them back, or compile again"
        )
    return source


def _program_of(compiled: Any) -> Module:
    program = compiled if isinstance(compiled, Module) else getattr(compiled, "program", None)
    if not isinstance(program, Module):
        kind = type(compiled).__name__
        raise ArtifactError(f"a {kind} has no weights: give an artifact, a compiled program or a still.LM")
    return program


def _live_adapter(program: Module) -> Path | None:
    """What was trained for the program's predictors, where that is one adapter."""
    states = {name: predictor.config.get("adapter") for name, predictor in program.named_predictors()}
    found = {name: state for name, state in states.items() if state is not None}
    if len({state.digest for state in found.values()}) > 1:
        listed = ", ".join(f"{name}: {state.path}" for name, state in found.items())
        raise ArtifactError(f"the program has several adapters ({listed}): say by adapter= which one is exported")
    return next((checked_folder(state) for state in found.values()), None)


def _live_source(compiled: Any) -> ModelSource:
    lm = compiled
    if not isinstance(compiled, LM):
        program = _program_of(compiled)
        lms = {id(predictor.lm): predictor.lm for _, predictor in program.named_predictors()}
        if len(lms) != 1:
            raise ArtifactError(f"the program has {len(lms)} LMs: give the still.LM whose weights are meant")
        lm = next(iter(lms.values()))
    if not isinstance(lm, LM):
        raise ArtifactError(f"the program's LM is {lm!r}, which is not a local model: set a still.LM with set_lm")
    return resolve(lm.local.model)


def _conversation(program: Module | None) -> tuple[Conversation, tuple[str, ...]]:
    """The prompt of a program's only predictor, and what of it is lost."""
    predictors = [] if program is None else program.named_predictors()
    if len(predictors) != 1:
        why = "it has no predictor to show" if program is None else f"the program has {len(predictors)} predictors"
        return Conversation(), (f"SYSTEM and MESSAGEs: {why}; the prompts are in the artifact's plans",)
    ((name, predictor),) = predictors
    lost = [f"predictor {name!r}: its outputs' types are asked for, not enforced"]
    demos = predictor.demos
    if isinstance(demos, NearestDemonstrations) and demos.count_per_input:
        lost.append(f"predictor {name!r}: demonstrations chosen per input")
    plan = lower(asked_signature(predictor), [] if isinstance(demos, NearestDemonstrations) else demos)
    first, *turns = plan.turns[:-2]
    shown = [(turn.role, turn.text) for turn in turns]
    return Conversation(first.text, shown, (f'Ask with: "{_asked(plan)}"',)), tuple(lost)


def _asked(plan: Plan) -> str:
    """The last user's turn with a field's name in braces for its value."""
    parts = plan.turns[-2].parts
    return "".join(f"{{{part.field}}}" if isinstance(part, Slot) else getattr(part, "text", "") for part in parts)
