"""Tokens a second of LoRA training: Still's step and that of trl's SFTTrainer, on the same rows.

Tokens are those of the rows, prompts included, whatever a step does with them: Still computes what rows begin with once a
batch, trl fills rows up to one length. `tokens_per_cpu_second` divides by the seconds that all threads have computed: it
depends less on what else runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS, WARM, BATCH = 12, 3, 16
MODEL = "smollm2-135m"


def _train_rows() -> list[Any]:
    """The rows that `distil` makes of trec, the first of them."""
    import still
    from still.optimizers.weights.rows import RowWriter
    from still.signatures.layout import lower
    from weights_sets import task_of

    task = task_of("trec")
    lm = still.LM(MODEL)
    writer = RowWriter(lm.local.engine, lm.local.prompter)
    plan = lower(task.signature.with_updated_fields("kind", describe=False).with_instructions(" "))
    rows = [writer.write(plan, example, example) for example in list(task.train)[: BATCH * (STEPS + WARM)]]
    lm.local.engine.close()
    return rows


def still_sft() -> dict[str, Any]:
    """Ours: rows of about one length in a batch, the head only where there is loss."""
    from still.optimizers.weights.sft import SftSettings, SftStep, train_sft
    from still.optimizers.weights.student import Student

    rows = _train_rows()
    student = Student.open(MODEL)
    seen: list[SftStep] = []
    clock: list[float] = []

    def note(step: SftStep) -> None:
        seen.append(step)
        clock.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        train_sft(student, rows, SftSettings(epochs=1, batch=BATCH), folder=Path(folder), progress=note)
    tokens, seconds = seen[-1].tokens - seen[WARM - 1].tokens, seen[-1].seconds - seen[WARM - 1].seconds
    return {**_told(tokens, seconds, clock[-1] - clock[WARM - 1]), "loss": seen[-1].loss}


def trl_sft() -> dict[str, Any]:
    """trl's SFTTrainer as it is, but for what must be the same: rows, batch size, adapter, number format."""
    import datasets
    import torch
    import transformers
    import trl
    from still.backends.export import export_model
    from still.optimizers.weights.lora import Lora
    from still.optimizers.weights.student import fastest_precision

    low, rows = fastest_precision() == "bf16", _train_rows()
    data = datasets.Dataset.from_list(
        [{"input_ids": list(row.tokens), "completion_mask": [int(marked) for marked in row.loss]} for row in rows]
    )
    moments: list[float] = []
    clock: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *given: Any, **more: Any) -> None:
            moments.append(time.perf_counter())
            clock.append(time.process_time())

    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        export_model(MODEL, base, "hf", precision="bf16" if low else "f32")
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16 if low else torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        settings = trl.SFTConfig(
            output_dir=place, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=1e-3, bf16=low,
            use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to=[], disable_tqdm=True, seed=0,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            model, settings, train_dataset=data, processing_class=tokenizer, peft_config=Lora().config(), callbacks=[Clock()]
        )
        trainer.train()
    # All batches together: which rows meet in one is trl's choice, the mean is the same.
    seconds = moments[-1] - moments[WARM - 1]
    tokens = round(sum(len(row.tokens) for row in rows) * STEPS / (STEPS + WARM))
    loss = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
    return {**_told(tokens, seconds, clock[-1] - clock[WARM - 1]), "loss": loss}


def _told(tokens: int, seconds: float, cpu: float) -> dict[str, Any]:
    speeds = {"tokens_per_second": tokens / seconds, "tokens_per_cpu_second": tokens / cpu}
    return {**speeds, "tokens": tokens, "seconds": seconds}


SPEEDS: dict[str, Callable[[], dict[str, Any]]] = {"still_sft": still_sft, "trl_sft": trl_sft}
