"""The engine's core under random use, step by step: every page accounted for, every answer that of a request alone."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from byte_model import byte_model
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from still.backends.engine import END, Choose, Decode, Forced, Request, Sampling
from still.backends.engine.core import EngineCore
from still.backends.engine.invariants import check_tables
from still.backends.engine.kernels import native_level
from still.errors import EngineError

CACHE_PAGES = 10
"""Little more than the longest request takes: pages are evicted and sequences preempted all the time."""
TRUNK = [(i * 37) % 251 for i in range(90)]
BASES = [TRUNK, TRUNK[:37] + TRUNK[60:], TRUNK[:50] + TRUNK[10:50]]
"""Three prompts that part from each other inside a page."""
GRAMMAR = 'start: /[ab]{2,6}/ " and that is all"'
OPTIONS = tuple((*b"team "[:i], *tail) for i in range(3) for tail in (b"a\n", b"b longer than a page is\n", (7, END)))


def core_of(model, pages=CACHE_PAGES):
    return EngineCore(model, cache_tokens=16 * pages, max_context=None, max_rows=48, max_running=6)


def alone(core, request):
    """The request by itself, from an empty cache."""
    core.scheduler.pool.clear()
    (sequence,) = core.prepare(request)
    core.add(sequence)
    while not core.scheduler.idle:
        core.step()
    return sequence.future.result()


def answer_of(result):
    return [(step.tokens, step.text, step.finish_reason, step.logprobs, step.scores) for step in result.steps]


def steps_of(kind, new):
    return {
        "decode": (Decode(new, ignore_eos=True),),
        "score": (Forced(tuple(TRUNK[:7]), score=True), Forced((5, 6)), Decode(new, ignore_eos=True)),
        "forced": (Decode(3, ignore_eos=True), Forced(tuple(TRUNK[20:45])), Decode(new, ignore_eos=True)),
        "grammar": (Decode(new, grammar=GRAMMAR, closing=24),),
        "choice": (Decode(2, ignore_eos=True), Choose(OPTIONS), Decode(new, ignore_eos=True)),
    }[kind]


requests = st.builds(
    lambda base, cut, tail, kind, new, hot, seed: Request(
        tuple(BASES[base][:cut]) + (9, 8)[:tail], steps_of(kind, new), Sampling(temperature=float(hot), top_k=40, seed=seed)
    ),
    st.integers(0, 2),
    st.integers(1, 60),
    st.integers(0, 2),
    st.sampled_from(["decode", "decode", "score", "forced", "grammar", "choice"]),
    st.integers(1, 24),
    st.booleans(),
    st.integers(0, 2),
)


class CoreMachine(RuleBasedStateMachine):
    """Everything that may happen to the engine, one thing after the other."""

    core: EngineCore
    expected: dict[Request, object]
    happened: Counter

    def __init__(self):
        super().__init__()
        self.sequences = []

    @initialize()
    def start_empty(self):
        self.core.fail_all(EngineError("the example before was broken off"))
        self.preemptions = self.core.stats.preemptions

    def send(self, sequences):
        self.core.add(sequences[0])
        self.sequences += sequences

    @rule(request=requests)
    def submit(self, request):
        self.send(self.core.prepare(request))

    @rule(request=requests, n=st.integers(2, 5))
    def submit_samples(self, request, n):
        self.send(self.core.prepare(replace(request, sampling=replace(request.sampling, temperature=1.0)), range(n)))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def cancel(self, data):
        self.happened["cancelled"] += data.draw(st.sampled_from(self.sequences)).future.cancel()

    @rule(count=st.integers(1, 6))
    def step(self, count):
        for _ in range(count):
            self.tick()
            check_tables(self.core.scheduler)

    def tick(self):
        self.core.step()
        self.happened["copied"] += len(self.core.scheduler._plan.copies)

    @rule()
    def finish(self):
        for _ in range(3000):
            if self.core.scheduler.idle:
                break
            self.tick()
        assert self.core.scheduler.idle, "the sequences block each other"
        self.compare()

    @rule()
    def evict(self):
        self.core.scheduler.pool.clear()

    @invariant()
    def consistent(self):
        check_tables(self.core.scheduler)

    def compare(self):
        for sequence in self.sequences:
            assert sequence.future.done()
            if not sequence.future.cancelled():
                self.judge(sequence.request, sequence.future.result())
                self.happened["cached"] += sequence.cached
                self.happened["answered"] += 1
        self.sequences = []

    def judge(self, request, result):
        raise NotImplementedError

    def teardown(self):
        for sequence in self.sequences[::2]:
            self.happened["cancelled"] += sequence.future.cancel()
        self.finish()
        check_tables(self.core.scheduler)
        assert self.core.scheduler.pool.num_used == 0
        self.happened["preempted"] += self.core.stats.preemptions - self.preemptions


def run_machine(machine, examples):
    machine.happened = Counter()
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=30, deadline=None))
    kinds = ("answered", "cancelled", "cached", "copied", "preempted")
    rare = [what for what in kinds if machine.happened[what] < examples // 3]
    assert not rare, f"the machine exercises too little: {machine.happened}"


@pytest.mark.skipif(native_level() == 0, reason="the compiled decoder does not run on this machine")
def test_any_history_gives_every_request_its_own_answer_bit_for_bit(tiny_int8):
    model = byte_model(tiny_int8)
    solo, expected = core_of(model), {}

    class Machine(CoreMachine):
        core = core_of(model)

        def judge(self, request, result):
            if request not in expected:
                expected[request] = answer_of(alone(solo, request))
            assert answer_of(result) == expected[request]

    run_machine(Machine, 100)


def dense_logprobs(model, tokens):
    """Log-probabilities after every token: a plain transformer over the whole sequence, without pages or batches."""
    spec, weights, n = model.spec, model.weights, len(tokens)
    heads, kv, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + spec.rms_eps) * weight

    angles = torch.arange(n)[:, None] * spec.rope_theta ** (-torch.arange(0, dim, 2) / dim)
    rotation = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rotate(x):
        pairs = torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * rotation
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    x = weights["lm_head"][torch.tensor(tokens)].float()
    hidden = torch.full((n, n), float("-inf")).triu(1)
    for i in range(spec.num_layers):
        layer = {name.removeprefix(f"layers.{i}."): w for name, w in weights.items() if name.startswith(f"layers.{i}.")}
        qkv = (norm(x, layer["attn_norm"]) @ layer["qkv"].T).view(n, -1, dim)
        q, k, v = qkv.split([heads, kv, kv], dim=1)
        q, k, v = rotate(q), rotate(k).repeat_interleave(heads // kv, 1), v.repeat_interleave(heads // kv, 1)
        share = (torch.einsum("qhd,khd->hqk", q, k) / dim**0.5 + hidden).softmax(-1)
        x = x + torch.einsum("hqk,khd->qhd", share, v).reshape(n, -1) @ layer["o"].T
        gate, up = (norm(x, layer["mlp_norm"]) @ layer["gate_up"].T).chunk(2, -1)
        x = x + (torch.nn.functional.silu(gate) * up) @ layer["down"].T
    return (norm(x, weights["norm"]) @ weights["lm_head"].T).log_softmax(-1)


def option_logprob(model, before, option):
    """Log-probability of an option's tokens, one after the other."""
    ids = [next(iter(model.tokenizer.eos_ids)) if token == END else token for token in option]
    rows = dense_logprobs(model, [*before, *ids])[len(before) - 1 : -1]
    return float(rows[torch.arange(len(ids)), torch.tensor(ids)].sum())


def test_any_history_gives_the_probabilities_of_a_plain_transformer(tiny_model):
    """Float32 sums depend on the batch in their last bits, so that a near tie may go either way: judged are the
    log-probabilities of what was drawn, and that greedy choices are best to within rounding."""

    model = byte_model(tiny_model)

    class Machine(CoreMachine):
        core = core_of(model)

        def judge(self, request, result):
            tokens = [*request.prompt]
            for step in result.steps:
                tokens += step.tokens
            dense = dense_logprobs(model, tokens)
            begin = len(request.prompt)
            for asked, step in zip(request.steps, result.steps, strict=True):
                if isinstance(asked, Choose):
                    expected = [option_logprob(model, tokens[:begin], option) for option in asked.options]
                    torch.testing.assert_close(torch.tensor(step.scores), torch.tensor(expected), atol=2e-3, rtol=0)
                rows = dense[begin - 1 : begin - 1 + len(step.tokens)]
                found = rows[torch.arange(len(rows)), torch.tensor(step.tokens)]
                if step.logprobs and len(step.logprobs) == len(step.tokens):
                    torch.testing.assert_close(torch.tensor(step.logprobs), found, atol=2e-3, rtol=0)
                if isinstance(asked, Decode) and asked.grammar is None and request.sampling.temperature == 0:
                    for eos in model.tokenizer.eos_ids:
                        rows[:, eos] = float("-inf")
                    assert (rows.amax(-1) - found).max() < 2e-3
                begin += len(step.tokens)

    run_machine(Machine, 40)
