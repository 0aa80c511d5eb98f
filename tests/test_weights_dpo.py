"""Pairs, preference losses and DPO: against formulas written out, against trl, and on a toy preference."""

import math
import random
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.engine import Choose, Engine, Request
from still.backends.models import load_model
from still.errors import TrainingError
from still.optimizers.weights import dpo, layout
from still.optimizers.weights.dpo import DpoSettings, measure_pairs, train_dpo
from still.optimizers.weights.lora import Lora
from still.optimizers.weights.pairs import Pair, Scored, choice_pairs, given_pairs, prompt_of, ranked_pairs
from still.optimizers.weights.preference import LOSSES, LossShape, PairScores, preference_loss
from still.optimizers.weights.student import Student
from weights_toys import Unmoved, open_student, row, write_base

CHOSEN, REJECTED = [-2.0, -9.0, -4.0], [-3.0, -5.0, -12.5]
REF_CHOSEN, REF_REJECTED = [-2.5, -6.0, -8.0], [-2.0, -6.5, -10.0]
LENGTHS, OTHER_LENGTHS = [2, 5, 3], [4, 3, 6]
SHAPE = LossShape(beta=0.3, label_smoothing=0.1)
EXTREME = LossShape(beta=40.0, label_smoothing=0.1)


def scores():
    values = (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, LENGTHS, OTHER_LENGTHS)
    return PairScores(*(torch.tensor(each, dtype=torch.float32) for each in values))


def logistic(x):
    return 1 / (1 + math.exp(-x))


def by_pair(formula):
    """Mean over the pairs of a formula of (u, v, lengths): what each side gained on the reference."""
    terms = [
        formula(c - rc, r - rr, n, m)
        for c, r, rc, rr, n, m in zip(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, LENGTHS, OTHER_LENGTHS, strict=True)
    ]
    return sum(terms) / len(terms)


FORMULAS = {
    "sigmoid": lambda u, v, n, m: -math.log(logistic(0.3 * (u - v))),
    "hinge": lambda u, v, n, m: max(0.0, 1 - 0.3 * (u - v)),
    "ipo": lambda u, v, n, m: (u / n - v / m - 1 / 0.6) ** 2,
    "robust": lambda u, v, n, m: (
        (-0.9 * math.log(logistic(0.3 * (u - v))) + 0.1 * math.log(logistic(0.3 * (v - u)))) / 0.8
    ),
    "sigmoid_norm": lambda u, v, n, m: -math.log(logistic(0.3 * (u / n - v / m))),
    "bco_pair": lambda u, v, n, m: -math.log(logistic(0.3 * u)) - math.log(logistic(-0.3 * v)),
    "sppo_hard": lambda u, v, n, m: (u - 0.5 / 0.3) ** 2 + (v + 0.5 / 0.3) ** 2,
    "apo_zero": lambda u, v, n, m: 1 - logistic(0.3 * u) + logistic(0.3 * v),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_are_their_formulas(name):
    assert float(preference_loss(scores(), name, SHAPE)) == pytest.approx(by_pair(FORMULAS[name]), rel=1e-5)


class Anything:
    """Stands for trl's accelerator and counters: gathers nothing, keeps nothing."""

    device = "cpu"

    def gather(self, value):
        return value

    gather_for_metrics = gather


def trl_loss(name, shape):
    """What trl's trainer computes from the same log-probabilities: its `_compute_loss` with a model that returns them."""
    trainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    lengths = LENGTHS + OTHER_LENGTHS
    width = max(lengths)
    # One column more: the first token has no prediction. The sum is on the first token of the completion.
    mask = torch.tensor([[0] + [1] * n + [0] * (width - n) for n in lengths])
    logprobs = torch.zeros(len(lengths), width)
    logprobs[:, 0] = torch.tensor(CHOSEN + REJECTED)
    outputs = SimpleNamespace(
        log_probs=logprobs, entropy=logprobs, mean_logits=logprobs, is_top1=mask[:, 1:].bool(), log_sum_sq_probs=logprobs
    )

    def model(**_):
        return outputs

    model.training = True
    inputs = {
        "input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "ref_chosen_logps": torch.tensor(REF_CHOSEN), "ref_rejected_logps": torch.tensor(REF_REJECTED),
    }  # fmt: skip
    stub = SimpleNamespace(
        model=model, accelerator=Anything(), aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        f_divergence_type="reverse_kl", loss_types=[name], loss_weights=[1.0], beta=shape.beta, use_weighting=False,
        label_smoothing=shape.label_smoothing, args=SimpleNamespace(discopop_tau=shape.discopop_tau), _tp_size=1,
        _total_train_tokens=0, _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    return float(trainer._compute_loss(stub, model, inputs, return_outputs=False))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_trl(name):
    assert float(preference_loss(scores(), name, SHAPE)) == pytest.approx(trl_loss(name, SHAPE), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "discopop"])
def test_losses_stay_finite_far_from_the_reference(name):
    """But for discopop, whose exponential overflows by its definition."""
    far = scores()
    leaf = (far.chosen * 100).requires_grad_()
    loss = preference_loss(PairScores(leaf, *[getattr(far, n) for n in PairScores.__slots__[1:]]), name, EXTREME)
    loss.backward()
    assert loss.isfinite() and leaf.grad.isfinite().all()


def test_losses_are_summed_by_weight():
    one, other = (float(preference_loss(scores(), name, SHAPE)) for name in ("sigmoid", "sft"))
    assert float(preference_loss(scores(), {"sigmoid": 1.0, "sft": 0.25}, SHAPE)) == pytest.approx(one + 0.25 * other)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: DpoSettings(loss="dpo"), "loss='dpo' is not known"),
        (lambda: DpoSettings(beta=0.0), "beta=0.0"),
        (lambda: DpoSettings(loss="robust", label_smoothing=0.5), "label_smoothing=0.5"),
        (lambda: DpoSettings(loss="exo_pair"), "label_smoothing=0"),
        (lambda: DpoSettings(batch=0), "batch=0"),
        (lambda: Pair(row("q", "a"), row("q", "a", key="k")), "are the same 2 tokens"),
        (lambda: Pair(row("q", "a"), row("q", "", key="k")), "rejected of the pair for 'k' has no decoded token"),
        (lambda: Pair(row("q", "a"), row("p", "b")), "different prompts"),
        (lambda: Pair(row("q", "a"), row("q", "b"), 0.0), "margin=0.0"),
        (lambda: given_pairs([{"q": "?", "chosen": "a", "rejected": " "}], None), "record 0: rejected=' '"),
        (lambda: given_pairs([{"q": "?", "chosen": "a", "rejected": "a"}], None), "record 0: chosen and rejected are both"),
        (lambda: choice_pairs({"a": row("q", "a")}, {"a": -1.0}, "b"), "label 'b' is not among the 1 options"),
        (lambda: train_dpo(None, []), "pairs is empty"),
    ],
)
def test_refusals_name_what_is_wrong(made, message):
    with pytest.raises(TrainingError) as error:
        made()
    assert message in str(error.value)


answered = st.tuples(st.sampled_from(["", "a", "b", "cc", "d", "ee"]), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
groups = st.lists(answered, max_size=8)


@given(groups, st.sampled_from([0.0, 0.25, 0.5]), st.integers(1, 4), st.integers(0, 3), st.randoms())
@settings(max_examples=150, deadline=None)
def test_ranked_pairs(drawn, margin, most, seed, shuffled):
    group = [Scored(row("q", text), score) for text, score in drawn]
    means = {
        text.encode(): sum(s for t, s in drawn if t == text) / sum(t == text for t, _ in drawn) for text, _ in drawn
    }
    pairs = ranked_pairs([group], margin=margin, most=most, seed=seed)
    answers = [tuple(bytes(side.tokens[1:]) for side in (pair.chosen, pair.rejected)) for pair in pairs]
    possible = {
        (a, b) for a in means for b in means if a and b and means[a] - means[b] > max(1e-12, margin + 1e-12)
    }  # fmt: skip
    for (chosen, rejected), pair in zip(answers, pairs, strict=True):
        assert pair.margin == pytest.approx(means[chosen] - means[rejected])
        assert pair.margin > 0 and pair.margin >= margin
        assert prompt_of(pair.chosen) == prompt_of(pair.rejected) == tuple(b"q")
    assert len(set(answers)) == len(answers) <= most
    assert len(answers) >= min(most, len(possible)), "no pair is withheld"
    if answers:
        assert pairs[0].margin == pytest.approx(max(means[a] - means[b] for a in means for b in means if a and b))
    again = list(group)
    shuffled.shuffle(again)
    assert ranked_pairs([[], again], margin=margin, most=most, seed=seed) == pairs


def test_pairs_of_an_example_spread_over_its_answers():
    group = [Scored(row("q", text), score) for text, score in [("a", 1.0), ("b", 1.0), ("c", 0.0), ("d", 0.0)]]
    for seed in range(5):
        first, second = ranked_pairs([group], most=2, seed=seed)
        assert len({first.chosen.tokens, second.chosen.tokens, first.rejected.tokens, second.rejected.tokens}) == 4


def test_choice_pairs_are_the_likeliest_mistakes():
    options = {text: row("q", text) for text in "abcd"}
    likely = {"a": -3.0, "b": -1.0, "c": -2.0, "d": -9.0}
    assert [pair.rejected for pair in choice_pairs(options, likely, "a", most=3)] == [options["b"], options["c"]]
    assert choice_pairs(options, likely, "b") == []
    (hard,) = choice_pairs(options, likely, "b", only_mistakes=False)
    assert (hard.chosen, hard.rejected) == (options["b"], options["c"])


def test_given_pairs_carry_inputs_and_margin():
    records = [{"q": "?", "chosen": "a", "rejected": "b", "margin": 2}, {"q": "!", "chosen": "a", "rejected": "b"}]
    pairs = given_pairs([*records, records[0]], lambda inputs, text: row(inputs["q"], text))
    assert pairs == [Pair(row("?", "a"), row("?", "b"), 2.0), Pair(row("!", "a"), row("!", "b"))]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STILL_CACHE", str(tmp_path_factory.mktemp("cache")))


def toy_pairs(count, seed):
    """Letters up to m are answered `lo`, others `up`, whatever stands before."""
    drawing = random.Random(seed)
    pairs = []
    for _ in range(count):
        prompt = "".join(drawing.choices("0123456789", k=2)) + drawing.choice("abcdefghijklmnopqrstuvwxyz")
        answers = ("lo", "up") if prompt[-1] <= "m" else ("up", "lo")
        pairs.append(Pair(*(row(prompt, answer) for answer in answers)))
    return pairs


def engine_accuracy(base, folder, pairs):
    """Share of the pairs whose chosen answer the int8 engine takes out of the two."""
    with Engine(load_model(str(base), "int8"), cache_tokens=4096) as engine:
        engine.load_adapter("tuned", folder)
        step = Choose((tuple(b"lo"), tuple(b"up")))
        asked = [engine.submit(Request(prompt_of(pair.chosen), (step,), adapter="tuned")) for pair in pairs]
        answers = [future.result().steps[0].tokens for future in asked]
    return sum(pair.chosen.tokens[3:] == answer for pair, answer in zip(pairs, answers, strict=True)) / len(pairs)


def test_a_preference_is_learned_and_generalizes(base, tmp_path):
    student, seen = open_student(base), []
    training, held_out = toy_pairs(600, 1), toy_pairs(64, 2)
    known = {pair.chosen.tokens for pair in training}
    held_out = [pair for pair in held_out if pair.chosen.tokens not in known]
    before = measure_pairs(student, held_out)[0]
    student.save(tmp_path / "before")
    record = train_dpo(
        student, training, DpoSettings(learning_rate=5e-3, epochs=4, batch=16, warmup=0.05), progress=seen.append
    )  # fmt: skip
    assert list(record.steps) == seen
    first = record.steps[0]
    assert first.loss == pytest.approx(math.log(2), abs=1e-4), "it is the reference"
    assert first.margin == pytest.approx(0, abs=1e-4)
    assert record.losses[-1] < 0.3 and record.accuracies[-1] > 0.9 and record.margins[-1] > 1
    assert record.tokens_per_second > 0 and record.tokens == 4 * 10 * record.pairs
    student.save(tmp_path / "after")
    assert before < 0.75 and measure_pairs(student, held_out)[0] > 0.9
    assert engine_accuracy(base, tmp_path / "before", held_out) < 0.75
    assert engine_accuracy(base, tmp_path / "after", held_out) > 0.9


def test_the_reference_is_where_training_starts(base):
    """A second training begins at log 2 and margin 0 again: its reference is what the first one left."""
    student, pairs = open_student(base), toy_pairs(16, 3)
    again = [train_dpo(student, pairs, DpoSettings(learning_rate=5e-3, batch=8, epochs=3)) for _ in range(2)]
    assert again[0].losses[-1] < 0.6
    assert again[1].losses[0] == pytest.approx(math.log(2), abs=1e-4)


def test_same_seed_same_steps(base):
    pairs = toy_pairs(12, 4)
    runs = [train_dpo(open_student(base), pairs, DpoSettings(batch=4, seed=seed)).losses for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_loss_that_is_no_number_changes_nothing(base):
    student = open_student(base)
    before = [parameter.detach().clone() for parameter in student.parameters()]

    class Broken:
        parameters, reference = student.parameters, student.reference

        def token_logprobs(self, rows):
            return [logprobs * math.nan for logprobs in student.token_logprobs(rows)]

    with pytest.raises(TrainingError, match=r"loss=nan in step 1.*learning_rate"):
        train_dpo(Broken(), toy_pairs(4, 5))
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_running_out_of_memory_says_what_to_do(base):
    student = open_student(base)

    class Full:
        parameters, reference = student.parameters, student.reference

        def token_logprobs(self, rows):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(TrainingError, match=r"out of memory .*batch=4"):
        train_dpo(Full(), toy_pairs(4, 5))


@pytest.fixture(params=[1, 2], ids=["whole", "lanes"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("loss", ["sigmoid", {"aot": 1.0, "sft": 0.5}], ids=["by pair", "by batch"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(base, monkeypatch, threads, loss):
    """Where a batch is too large for one graph, no part's is larger than it may be, and each is built once."""
    student, pairs, plain = open_student(base), toy_pairs(12, 6), Student._logprobs
    known = dpo._with_reference(student, pairs)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_(0, 0.1)
    seen, told, gradients = [], [], []

    def watched(self, rows):
        nodes = {each.tokens[:i] for each in rows for i in range(1, len(each.tokens))}
        seen.append((torch.is_grad_enabled(), len(nodes)))
        return plain(self, rows)

    monkeypatch.setattr(Student, "_logprobs", watched)
    for most in (10**6, 20):
        monkeypatch.setattr(layout, "PASS_NODES", most)
        seen.clear()
        told.append(dpo._step(student, Unmoved(), known, DpoSettings(loss=loss, batch=12)))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in student.parameters()]))
        student.network.zero_grad()
        if most > 20:
            assert len(seen) == threads and all(graph for graph, _ in seen), "one graph, where it fits"
    assert len(seen) >= 6 and all(nodes <= 20 for _, nodes in seen)
    assert sum(graph for graph, _ in seen) * 2 == len(seen)
    assert told[0] == pytest.approx(told[1], rel=1e-4, abs=1e-5)
    assert gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[0].norm()


def test_same_seed_same_dropout(base):
    """Whatever else has drawn random numbers in the process."""
    pairs, runs = toy_pairs(12, 4), []
    for other, seed in ((1, 1), (2, 1), (2, 2)):
        torch.manual_seed(other)
        student = Student.open(str(base), Lora(r=8, alpha=16, dropout=0.3), seed, precision="fp32")
        runs.append(train_dpo(student, pairs, DpoSettings(learning_rate=5e-3, batch=4)).losses)
    assert runs[0] == runs[1] != runs[2]
