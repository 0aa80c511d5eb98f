"""Supervised fine-tuning on toys: formulas, what it learns, what it survives."""

import errno
import itertools
import json
import resource
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from still.backends.export import staging
from still.errors import TrainingError
from still.optimizers.weights import sft
from still.optimizers.weights.lora import TARGETS, Lora
from still.optimizers.weights.sft import SftSettings, train_sft
from still.optimizers.weights.student import Student, _settle
from weights_toys import open_student, row, write_base

TOYS = [row(f"{a}{b}=", "odd" if (a + b) % 2 else "even", f"{a} {b}") for a in range(8) for b in range(8)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("toy") / "base")


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_log_probabilities_are_those_of_the_merged_weights(base, tmp_path):
    """W + (alpha / r) B A, computed here, in a model of transformers without PEFT; all rows alone, with full logits."""
    student = open_student(base)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_(0, 0.2)
    update = weights(student.save(tmp_path / "adapter"))
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    state = model.state_dict()
    for name in [key for key in update if "lora_A" in key]:
        target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        state[target] += (16 / 8) * update[name.replace("lora_A", "lora_B")] @ update[name]
    rows = [row("12=", "odd"), row("a long prompt=", "e"), row("7", "even")]
    for found, each in zip(student.token_logprobs(rows), rows, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([each.tokens])).logits[0].double()
        all_of_them = (logits.softmax(-1).log()[:-1]).gather(1, torch.tensor(each.tokens[1:])[:, None])[:, 0]
        expected = all_of_them[torch.tensor(each.loss[1:])]
        assert found.dtype == torch.float32 and found.requires_grad
        torch.testing.assert_close(found.detach().double(), expected, atol=1e-4, rtol=1e-4)


def test_only_tokens_with_loss_have_gradients(base):
    student = open_student(base)
    masked = row("12=", "odd")
    none = type(masked)(masked.tokens, (False,) * len(masked.tokens))
    assert [len(each) for each in student.token_logprobs([none, masked])] == [0, 3]


@pytest.mark.parametrize(("named", "kept"), [("bf16", torch.bfloat16), ("fp32", torch.float32), ("auto", None)])
def test_the_base_is_kept_in_the_format_that_is_named(base, named, kept):
    student = Student.open(str(base), Lora(r=4), precision=named)
    (held,) = {parameter.dtype for parameter in student.network.parameters() if not parameter.requires_grad}
    assert held == (kept or {"bf16": torch.bfloat16, "fp32": torch.float32}[student.precision])
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


@pytest.mark.parametrize(("rows", "given", "steps"), [(64, None, 8), (1040, None, 65), (64, 20, 4)])
def test_few_rows_are_trained_on_in_smaller_batches(base, tmp_path, monkeypatch, rows, given, steps):
    monkeypatch.setattr(sft._Training, "_step", lambda self, batch: self.record.losses.append(0.0))
    taken = []
    settings = SftSettings(epochs=1, batch=given)
    record = train_sft(open_student(base), (TOYS * 17)[:rows], settings, folder=tmp_path, progress=taken.append)
    assert len(taken) == taken[-1].steps == steps
    assert record.settings.batch == (given or (8 if rows == 64 else 16)), "the record says what it came to"


def test_it_learns_and_the_engine_answers_with_it(base, tmp_path):
    from still.backends.engine import Choose, Engine, Request
    from still.backends.models import load_model

    options = (tuple(b"odd"), tuple(b"even"))
    asked = [each for each in TOYS if sum(map(int, each.key.split())) % 3 != 1]

    def answered(folder):
        with Engine(load_model(str(base), "int8")) as engine:
            engine.load_adapter("toy", folder)
            prompts = [each.tokens[: each.loss.index(True)] for each in asked]
            futures = [engine.submit(Request(prompt, (Choose(options),), adapter="toy")) for prompt in prompts]
            found = [future.result().steps[0].text for future in futures]
        wanted = [bytes(each.tokens).split(b"=")[1].decode() for each in asked]
        return sum(map(str.__eq__, found, wanted)) / len(asked)

    seen = []
    record = train_sft(
        open_student(base), TOYS, SftSettings(epochs=30, batch=16, learning_rate=1e-2, patience=30),
        folder=tmp_path, measure=answered, progress=seen.append,
    )  # fmt: skip
    assert max(record.scores) > 0.9 > record.scores[0] - 0.2
    assert record.losses[-1] < 0.3 * record.losses[0]
    assert answered(tmp_path / "best") == max(record.scores)
    assert seen[-1].tokens == sum(len(each.tokens) for each in TOYS) * len(record.scores)
    assert "tokens/s" in str(seen[-1])


@pytest.mark.parametrize("stop", [3, 8, 11])
def test_a_killed_training_ends_where_an_unbroken_one_does(base, tmp_path, monkeypatch, stop):
    settings = SftSettings(epochs=3, batch=16, learning_rate=5e-3)

    def by_epoch(folder):
        return {"epoch-1": 0.2, "epoch-2": 0.5, "epoch-3": 0.4}[folder.name]

    whole = train_sft(open_student(base), TOYS, settings, folder=tmp_path / "whole", measure=by_epoch)
    monkeypatch.setattr(sft, "SAVE_SECONDS", 0.0)

    def killed(step):
        if step.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(open_student(base), TOYS, settings, folder=tmp_path / "broken", measure=by_epoch, progress=killed)
    steps = []
    again = train_sft(
        open_student(base), TOYS, settings, folder=tmp_path / "broken", measure=by_epoch, progress=steps.append
    )
    assert 0 < len(steps) <= 12 - stop + 1
    assert again.losses == whole.losses and again.scores == whole.scores == [0.2, 0.5, 0.4]
    assert same(weights(tmp_path / "broken" / "best"), weights(tmp_path / "whole" / "best"))
    assert not (tmp_path / "broken" / "checkpoint").exists()


def test_a_batch_in_parts_is_the_batch(base, tmp_path, monkeypatch):
    """Long rows are computed a few at a time; of rows without a decision nothing is learned."""
    settings = SftSettings(epochs=1, batch=8, learning_rate=1e-2)
    forced = type(TOYS[0])(TOYS[0].tokens, (False,) * len(TOYS[0].tokens))
    records, made = [], []
    for most in (10**6, 20):
        monkeypatch.setattr(sft, "PASS_TOKENS", most)
        records.append(train_sft(open_student(base), [*TOYS[:16], forced], settings, folder=tmp_path / str(most)))
        made.append(weights(tmp_path / str(most) / "best"))
    assert [len(part) for part in sft._parts(TOYS[:5])] == [3, 2] and records[0].rows == 16
    assert records[0].losses == pytest.approx(records[1].losses, abs=1e-4)
    for name, tensor in made[0].items():
        torch.testing.assert_close(tensor, made[1][name], atol=2e-4, rtol=1e-2)


def test_another_training_does_not_go_on_from_a_checkpoint(base, tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "SAVE_SECONDS", 0.0)

    def killed(step):
        if step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(open_student(base), TOYS, SftSettings(epochs=1), folder=tmp_path, progress=killed)
    begun = []
    settings = SftSettings(epochs=1, learning_rate=1e-4)
    train_sft(open_student(base), TOYS, settings, folder=tmp_path, progress=begun.append)
    assert [step.step for step in begun] == list(range(1, 9)), "all of its steps, from the first"


def test_it_stops_when_dev_gets_no_better(base, tmp_path):
    scores = iter([0.5, 0.6, 0.6, 0.1])
    settings = SftSettings(epochs=10, patience=2)
    record = train_sft(open_student(base), TOYS, settings, folder=tmp_path, measure=lambda folder: next(scores))
    assert record.scores == [0.5, 0.6, 0.6, 0.1]
    assert same(weights(tmp_path / "best"), weights(tmp_path / "epoch-2"))


def test_bad_training_says_what_to_do(base, tmp_path):
    with pytest.raises(TrainingError, match="3 rows to train on: at least 8"):
        train_sft(open_student(base), TOYS[:3], folder=tmp_path)
    with pytest.raises(TrainingError, match="smaller learning_rate"):
        train_sft(open_student(base), TOYS, SftSettings(learning_rate=1e30), folder=tmp_path)
    with pytest.raises(TrainingError, match="epochs=0"):
        SftSettings(epochs=0)
    with pytest.raises(TrainingError, match="r=0"):
        Lora(r=0)
    with pytest.raises(TrainingError, match="embed"):
        Lora(targets=("embed",))
    with pytest.raises(TrainingError, match="precision='int3'"):
        Student.open(str(base), precision="int3")


def test_a_killed_training_with_dropout_ends_where_an_unbroken_one_does(base, tmp_path, monkeypatch):
    """What dropout draws follows from seed and step, not from what else the process has drawn."""
    settings = SftSettings(epochs=2, batch=16, learning_rate=5e-3)

    def student():
        return Student.open(str(base), Lora(r=8, alpha=16, dropout=0.3), precision="fp32")

    def killed(step):
        if step.step == 4:
            raise KeyboardInterrupt

    whole = train_sft(student(), TOYS, settings, folder=tmp_path / "whole")
    monkeypatch.setattr(sft, "SAVE_SECONDS", 0.0)
    torch.manual_seed(7)
    with pytest.raises(KeyboardInterrupt):
        train_sft(student(), TOYS, settings, folder=tmp_path / "broken", progress=killed)
    steps = []
    again = train_sft(student(), TOYS, settings, folder=tmp_path / "broken", progress=steps.append)
    assert [step.step for step in steps] == [4, 5, 6, 7, 8], "it went on"
    assert again.losses == whole.losses
    assert same(weights(tmp_path / "broken" / "best"), weights(tmp_path / "whole" / "best"))


def test_a_saved_adapter_is_the_same_bytes_in_every_process(base, tmp_path):
    """Its digest is part of a program's: in it is neither the order of PEFT's sets nor the folder the base was read from."""
    made = [open_student(base).save(tmp_path / name) for name in "ab"]
    files = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in made]
    assert files[0] == files[1] and sorted(files[0]) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads(files[0]["adapter_config.json"])
    assert config["target_modules"] == sorted(TARGETS)
    assert config["base_model_name_or_path"] is None
    assert list(config) == sorted(config)
    assert PeftConfig.from_pretrained(made[0]).target_modules == set(TARGETS)
    assert Lora.read(made[0]) == Lora(r=8, alpha=16)


@pytest.mark.parametrize("name", ["exclude_modules", "target_modules"])
def test_sets_in_a_configuration_are_in_order(tmp_path, name):
    """In whatever order their hashes, which differ from process to process, have brought them."""
    config = LoraConfig(**{"target_modules": ["q_proj"], name: ["v_proj", "a_proj", "k_proj"]})
    config.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    written = []
    for order in itertools.permutations(["v_proj", "a_proj", "k_proj"]):
        file.write_text(json.dumps({**json.loads(file.read_text()), name: order}))
        _settle(file, config)
        written.append(file.read_text())
    assert len(set(written)) == 1
    assert json.loads(written[0])[name] == ["a_proj", "k_proj", "v_proj"]


@contextmanager
def files_of_at_most(size):
    """A real failure of the operating system's, met inside the libraries that write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("most", "what"), [(20_000, "adapter"), (80_000, "checkpoint")])
def test_a_checkpoint_that_cannot_be_written_says_so_and_leaves_nothing(base, tmp_path, most, what):
    """The adapter takes 50 kB, its optimizer's state twice that."""
    student = open_student(base)
    said = rf"^{what} {tmp_path}.*: cannot be written \(.*free some space"
    with pytest.raises(TrainingError, match=said), files_of_at_most(most):
        train_sft(student, TOYS, SftSettings(epochs=1), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fail", [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
], ids=["OSError", "SafetensorError"])  # fmt: skip
def test_a_full_disk_is_a_training_error(base, tmp_path, monkeypatch, fail):
    """Which is what a compile goes on after, with what it had."""

    def full(*given, **more):
        raise fail

    monkeypatch.setattr("peft.peft_model.safe_save_file", full)
    with pytest.raises(TrainingError, match=r"adapter .*No space left on device.*: free some space"):
        open_student(base).save(tmp_path / "adapter")


def test_no_room_for_the_base_is_a_training_error(base, monkeypatch):
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    with pytest.raises(TrainingError, match=r"MB are to be written, and its disk has 10 MB left.*TMPDIR"):
        open_student(base)


def test_a_damaged_adapter_is_named(base, tmp_path):
    student = open_student(base)
    file = student.save(tmp_path / "adapter") / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=rf"^{file}: cannot be read .*train anew"):
        student.load(tmp_path / "adapter")
    file.unlink()
    with pytest.raises(TrainingError, match=rf"^{file}: cannot be read .*train anew"):
        student.load(tmp_path / "adapter")


@pytest.mark.parametrize("name", ["optimizer.safetensors", "adapter_model.safetensors", "progress.json"])
def test_a_damaged_checkpoint_is_not_gone_on_from(base, tmp_path, monkeypatch, name):
    monkeypatch.setattr(sft, "SAVE_SECONDS", 0.0)
    settings = SftSettings(epochs=1)

    def killed(step):
        if step.step == 3:
            raise KeyboardInterrupt

    whole = train_sft(open_student(base), TOYS, settings, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_sft(open_student(base), TOYS, settings, folder=tmp_path, progress=killed)
    damaged = tmp_path / "checkpoint" / name
    damaged.write_bytes(damaged.read_bytes()[:-100])
    begun = []
    record = train_sft(open_student(base), TOYS, settings, folder=tmp_path, progress=begun.append)
    assert [step.step for step in begun] == list(range(1, 9)), "all of its steps, from the first"
    assert record.losses == whole.losses


@pytest.mark.parametrize("other", ["alpha", "rslora", "model"])
def test_another_adapter_or_model_does_not_go_on_from_a_checkpoint(base, tmp_path, monkeypatch, other):
    """All of the same shapes."""
    monkeypatch.setattr(sft, "SAVE_SECONDS", 0.0)

    def killed(step):
        if step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(open_student(base), TOYS, SftSettings(epochs=1), folder=tmp_path / "training", progress=killed)
    lora = {"alpha": Lora(r=8, alpha=32), "rslora": Lora(r=8, alpha=16, rslora=True), "model": Lora(r=8, alpha=16)}[other]
    model = base
    if other == "model":
        model = write_base(tmp_path / "base")
        file = model / "model.safetensors"
        doubled = {name: 2 * tensor for name, tensor in load_file(file).items()}
        save_file(doubled, file, metadata={"format": "pt"})
    begun = []
    student = Student.open(str(model), lora, precision="fp32")
    train_sft(student, TOYS, SftSettings(epochs=1), folder=tmp_path / "training", progress=begun.append)
    assert [step.step for step in begun] == list(range(1, 9)), "all of its steps, from the first"
