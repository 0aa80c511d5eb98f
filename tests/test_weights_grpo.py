"""GRPO: its terms written out, rollouts by the engine, and a toy reward that is learned."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from still.backends.engine import END as ENDED
from still.backends.engine import Choose, Decode, Engine, Forced, Request
from still.backends.models import load_model
from still.errors import MetricError, TrainingError
from still.optimizers.weights import grpo, layout
from still.optimizers.weights.grpo import GrpoSettings, advantages, token_terms, train_grpo
from still.optimizers.weights.policy import parameters_at, snapshot
from still.optimizers.weights.reward import EngineRollouts, Sample, Task
from weights_toys import END, Unmoved, open_student, row, write_base

GRAMMAR = 'start: "x=" /[a-d]/ ";" /[a-d]/ "!"'


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STILL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def engine(base):
    # fp32: of bf16 keys and values, torch's products depend on how many rows there are, by more than is compared here.
    with Engine(load_model(str(base), "fp32"), cache_tokens=8192) as made:
        yield made


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_advantages_are_standard_scores(rewards):
    mean, spread = statistics.fmean(rewards), statistics.stdev(rewards)
    for got, plain, reward in zip(advantages(rewards), advantages(rewards, scale=False), rewards, strict=True):
        assert got == pytest.approx((reward - mean) / (spread + 1e-4), abs=1e-9)
        assert plain == pytest.approx(reward - mean, abs=1e-12)


@pytest.mark.parametrize("advantage", [1.5, -0.7])
def test_terms_are_their_formulas(advantage):
    new, old, start = [-1.0, -2.0, -0.1], [-1.5, -1.2, -0.15], [-0.5, -2.5, -0.1]
    weights, settings = [1.0, 2.0, 0.5], GrpoSettings(clip_ratio=0.2, beta=0.04)
    terms = token_terms(*map(torch.tensor, (new, old, start, weights)), advantage, settings)
    for i in range(3):
        ratio = math.exp(new[i] - old[i])
        clipped = min(max(ratio, 0.8), 1.2)
        kl = math.exp(start[i] - new[i]) - (start[i] - new[i]) - 1
        expected = -weights[i] * min(ratio * advantage, clipped * advantage) + 0.04 * kl
        assert float(terms.loss[i]) == pytest.approx(expected, rel=1e-5)
        assert float(terms.kl[i]) == pytest.approx(kl, abs=1e-6)
    assert terms.clipped.tolist() == ([True, False, False] if advantage > 0 else [False, True, False])


class Fixed:
    """Rollouts that are always the same."""

    def __init__(self, groups):
        self.groups = groups

    def sample(self, prompts, adapter, n, temperature, seed):
        return self.groups


@pytest.mark.parametrize("aggregate", ["grpo", "bnpo", "dr_grpo"])
def test_the_first_gradient_is_the_weighted_policy_gradient(base, aggregate):
    """At the start the ratio is 1 and the KL 0: the gradient is that of -Σ w A log π, each token with its share."""
    student = open_student(base)
    rows, rewards = [row("q", "ab"), row("q", "cdef"), row("q", "ab")], [1.0, 0.0, 1.0]
    exact = student.reference(rows)
    off = [torch.full_like(of, 0.5) for of in exact]
    off[1][0] = -3.0  # the engine thought it less likely by e^3: truncated
    samples = [Sample(r, tuple((e + o).tolist()), x) for r, e, o, x in zip(rows, exact, off, rewards, strict=True)]
    weights = [[min(math.exp(-o), 2.0) for o in of.tolist()] for of in off]
    shares = {"grpo": [1 / 6, 1 / 12, 1 / 6], "bnpo": [1 / 8] * 3, "dr_grpo": [1 / 12] * 3}[aggregate]
    loss = 0
    for new, weight, advantage, share in zip(
        student.token_logprobs(rows), weights, advantages(rewards), shares, strict=True
    ):
        loss = loss - share * advantage * (new * torch.tensor(weight)).sum()
    expected = torch.autograd.grad(loss, list(student.parameters()))
    seen = []

    class Watched:
        token_logprobs, reference, save = student.token_logprobs, student.reference, student.save

        def parameters(self):
            return list(student.parameters())

    for parameter in student.parameters():
        parameter.register_hook(lambda grad: seen.append(grad.clone()))
    settings = GrpoSettings(steps=1, prompts=1, aggregate=aggregate, rows=8)
    record = train_grpo(Watched(), ["q"], Fixed([samples]), settings)
    key = lambda grads: sorted(float(g.abs().sum()) for g in grads)  # noqa: E731
    assert key(seen) == pytest.approx(key(expected), rel=1e-4, abs=1e-6)
    (step,) = record.steps
    assert step.truncated == pytest.approx(1 / 6), "of the distinct tokens"
    assert step.mismatch == pytest.approx((5 * 0.5 + 3.0) / 6, rel=1e-4)
    assert step.kl == pytest.approx(0.0, abs=1e-6) and step.reward == pytest.approx(2 / 3)


def test_groups_without_a_difference_teach_nothing(base):
    student = open_student(base)
    before = snapshot(student)
    samples = [Sample(row("q", text), (-1.0,), 0.5) for text in "ab"]
    record = train_grpo(student, ["q"], Fixed([samples]), GrpoSettings(steps=2))
    assert [(step.useful, step.mismatch, step.kl) for step in record.steps] == [(0.0, None, None)] * 2
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(student), strict=True))


def test_parameters_come_back(base):
    student = open_student(base)
    before = snapshot(student)
    with parameters_at(student, [value + 1 for value in before]):
        assert all(torch.equal(a + 1, b) for a, b in zip(before, snapshot(student), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(student), strict=True))


def test_rollouts_mark_what_was_decided_and_know_its_probability(base, engine, tmp_path):
    """Loss on drawn tokens and chosen options, not on what the grammar or the request forced; the log-probabilities are
    those that the engine reported when it drew."""
    student = open_student(base)
    student.save(tmp_path / "adapter")
    steps = (Decode(12, GRAMMAR), Forced(tuple(b"\n")), Choose(((111, ENDED), (110, 111, ENDED))))
    results = []
    task = Task(Request(tuple(b"ask"), steps), lambda result: results.append(result) or len(results), "key", "p")
    rollouts = EngineRollouts(engine)
    (group,) = rollouts.sample([task], tmp_path / "adapter", 5, 1.0, 3)
    assert engine.adapters == {}
    assert len({sample.row.tokens for sample in group}) > 1
    for sample, result in zip(group, results, strict=True):
        text, marks = sample.row.tokens, sample.row.loss
        decided = bytes(token for token, marked in zip(text, marks, strict=True) if marked and token != END)
        answer = bytes(text[3:-1]).decode()
        first, second = answer[2], answer[4]
        assert answer.startswith(f"x={first};{second}!\n") and text[-1] == END
        assert decided.decode() == first + second + answer[7:]
        assert sample.logprobs[:2] == pytest.approx(result.steps[0].logprobs, abs=1e-5)
        option = 0 if answer[7:] == "o" else 1
        assert sum(sample.logprobs[2:]) == pytest.approx(result.steps[2].scores[option], abs=1e-4)
        ours = student.reference([sample.row])[0]
        assert ours.tolist() == pytest.approx(list(sample.logprobs), abs=0.3), "int8 against fp32"
    assert [sample.reward for sample in group] == [1, 2, 3, 4, 5] and group[0].row.key == "key"
    again = rollouts.sample([task], tmp_path / "adapter", 5, 1.0, 3)[0]
    assert [sample.row for sample in again] == [sample.row for sample in group]
    with pytest.raises(MetricError, match="nan"):
        rollouts.sample([Task(task.request, lambda result: math.nan)], tmp_path / "adapter", 2, 1.0, 3)
    assert engine.adapters == {}


def test_drawn_ends_carry_loss(engine, base, tmp_path):
    open_student(base).save(tmp_path / "adapter")
    task = Task(Request(tuple(b"ask"), (Decode(20, "start: /[a-b]{0,9}/"),)), lambda result: 0.0)
    (group,) = EngineRollouts(engine).sample([task], tmp_path / "adapter", 12, 1.0, 0)
    ended = [sample for sample in group if sample.row.tokens[-1] == END]
    assert ended, "some answers end before they must"
    for sample in ended:
        assert sample.row.loss == (False,) * 3 + (True,) * (len(sample.row.tokens) - 3)


def toy_tasks():
    """The second letter is to be an `a` where the prompt is a digit, else a `d`; the first is free."""

    def task(prompt):
        wanted = "a" if prompt.isdigit() else "d"
        request = Request(tuple(prompt.encode()), (Decode(12, GRAMMAR),))
        return Task(request, lambda result: float(result.steps[0].text[4] == wanted), prompt)

    return [task(prompt) for prompt in "0123456789klmnopqrst"]


def test_a_reward_is_learned(base, engine):
    student, seen = open_student(base), []
    settings = GrpoSettings(steps=25, prompts=10, samples=8, learning_rate=1e-2, beta=0.01, seed=1)
    record = train_grpo(student, toy_tasks(), EngineRollouts(engine), settings, progress=seen.append)
    assert list(record.steps) == seen and seen[-1].remaining == 0
    assert statistics.fmean(record.rewards[:2]) < 0.5
    assert statistics.fmean(record.rewards[-4:]) > 0.85
    assert len(record.mismatches) > 5
    assert max(record.mismatches) < 0.5 and min(record.mismatches) > 0, "int8 differs from fp32, a little"
    assert record.steps[0].kl == pytest.approx(0.0, abs=1e-6) and max(step.kl or 0 for step in record.steps) > 0.01


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: GrpoSettings(samples=1), "samples=1"),
        (lambda: GrpoSettings(temperature=0.0), "temperature=0.0"),
        (lambda: GrpoSettings(truncation=0.5), "truncation=0.5"),
        (lambda: GrpoSettings(aggregate="mean"), "aggregate='mean'"),
        (lambda: train_grpo(None, [], None), "prompts is empty"),
    ],
)
def test_refusals_name_what_is_wrong(made, message):
    with pytest.raises(TrainingError) as error:
        made()
    assert message in str(error.value)


def test_samples_must_fit_their_rows(base):
    samples = [Sample(row("q", "ab"), (-1.0,), 0.0), Sample(row("q", "cd"), (-1.0, -1.0), 1.0)]
    with pytest.raises(TrainingError, match="1 numbers for the 2 loss tokens"):
        train_grpo(open_student(base), ["q"], Fixed([samples]), GrpoSettings(steps=1))


def test_a_step_in_parts_is_the_step(base, monkeypatch):
    """Rows that are too long for one graph are computed a few at a time; the KL pulls to where it started."""
    student = open_student(base)
    start = snapshot(student)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_(0, 0.05)
    rows = [row("the prompt=", answer) for answer in ("ab", "cdef", "abc", "fe")]
    exact = student.reference(rows)
    samples = [Sample(each, tuple((of - 0.1).tolist()), i / 3) for i, (each, of) in enumerate(zip(rows, exact, strict=True))]
    told, gradients = [], []
    for most, parts in ((10**6, 1), (16, 2)):
        monkeypatch.setattr(layout, "PASS_NODES", most)
        assert len(layout.parts_of(rows)) == parts
        told.append(grpo._learn(student, Unmoved(), start, [samples], GrpoSettings(beta=0.1)))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in student.parameters()]))
        student.network.zero_grad()
    assert told[0] == pytest.approx(told[1], rel=1e-4, abs=1e-5)
    assert gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[0].norm()
