"""A LoRA adapter to measure with: a plain loop over labelled texts, kept in .still/benchmarks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typed_sets import DATA

OUTPUT = Path(".still") / "benchmarks"
TRAIN_ROWS, BATCH, RATE, RANK = 640, 16, 1e-3, 16
NAMES = {
    "ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "human", "LOC": "location", "NUM": "number",
    "0": "negative", "1": "positive",
}  # fmt: skip
Tokens = tuple[int, ...]


def labelled(case: str, split: str, count: int) -> list[tuple[str, str]]:
    """(text, label) of the first rows of a data set's split; none where the data is not there."""
    file = DATA / case / f"{split}.jsonl"
    if not file.is_file():
        return []
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()[:count]]
    return [(row["text"], NAMES.get(str(row["label"]), str(row["label"]))) for row in rows]


def pairs(tokenizer: Any, texts: Sequence[tuple[str, str]]) -> list[tuple[Tokens, Tokens]]:
    """(prompt, completion) in tokens: a chat of one turn; the completion is the label and the end of the turn."""
    found = []
    end = tokenizer.encode("<|im_end|>", special=True)
    for text, label in texts:
        prompt = tokenizer.encode(tokenizer.render([{"role": "user", "content": text}], True), special=True)
        found.append((tuple(prompt), (*tokenizer.encode(label), *end)))
    return found


def trained(model: str, case: str) -> Path:
    """The PEFT folder, trained on first use: one pass over the rows, cross-entropy of completions, linear decay."""
    key = hashlib.sha256((Path(__file__).read_text("utf-8") + model).encode()).hexdigest()[:12]
    folder = OUTPUT / f"adapter-{case}-{key}"
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        _train(model, labelled(case, "train", TRAIN_ROWS), part)
        part.rename(folder)
    return folder


def _train(model: str, texts: Sequence[tuple[str, str]], folder: Path) -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from still.backends.export import export_model
    from still.backends.models import load_model

    base = OUTPUT / f"{model}-hf"
    if not base.is_dir():
        base.parent.mkdir(parents=True, exist_ok=True)
        export_model(model, base, "hf")
    rows = pairs(load_model(model, "fp32").tokenizer, texts)
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    network = get_peft_model(network, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=RATE, weight_decay=0.0)
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    for step, index in enumerate(torch.randperm(len(batches)).tolist()):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / len(batches))
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss(network, batches[index])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(folder)


def _loss(network: Any, batch: Sequence[tuple[Tokens, Tokens]]) -> Any:
    import torch

    width = max(len(p) + len(c) for p, c in batch)
    ids, labels = torch.zeros(len(batch), width, dtype=torch.long), torch.full((len(batch), width), -100)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for i, (prompt, completion) in enumerate(batch):
        end = len(prompt) + len(completion)
        ids[i, :end], mask[i, :end] = torch.tensor(prompt + completion), 1
        labels[i, len(prompt) : end] = torch.tensor(completion)
    hidden = network.base_model.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    at = labels[:, 1:] != -100  # the head only where there is loss
    logits = network.base_model.model.lm_head(hidden[:, :-1][at]).float()
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][at])
