"""Choosing among options: exact log-probabilities, whatever they share, and what is taken."""

import math

import pytest
import torch
from byte_model import byte_model
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.engine import END, Choose, Decode, Engine, Forced, Request, Sampling, option_probabilities
from still.backends.engine.kernels import native_level
from still.backends.engine.options import option_tree
from still.errors import EngineError

PROMPT = tuple(b"The message is about a parcel that did not come. team:")
TEAMS = ("billing", "bill payer", "shipping", "ship", "returns", "b")


def options_of(texts, end=(10,)):
    return tuple((*f" {text}".encode(), *end) for text in texts)


@pytest.fixture(scope="module")
def engine(tiny_int8):
    with Engine(byte_model(tiny_int8), cache_tokens=8192) as engine:
        yield engine
        assert engine._scheduler.idle
        assert engine._scheduler.pool.num_used == 0


def paths(node, before=()):
    here = (*before, *node.edge)
    found = {} if node.option is None else {node.option: here}
    for child in node.children:
        found |= paths(child, here)
    return found


def nodes(node):
    return [node, *(deeper for child in node.children for deeper in nodes(child))]


@given(st.lists(st.lists(st.integers(0, 3), max_size=6).map(lambda body: (*body, 9)), min_size=1, max_size=20, unique=True))
def test_the_tree_holds_every_option_and_nothing_twice(options):
    tree = option_tree(tuple(options))
    assert paths(tree) == dict(enumerate(options))
    for node in nodes(tree):
        firsts = [child.edge[0] for child in node.children]
        assert len(set(firsts)) == len(firsts)
        assert (node.option is None) == bool(node.children)
        assert node is tree or len(node.children) != 1


@pytest.mark.parametrize("options", [((1, 2), (1, 2)), ((1,), (1, 2)), ((), (1,)), ((END, 1), (2,))])
def test_options_that_cannot_be_told_apart_are_refused(engine, options):
    with pytest.raises(EngineError, match="option"):
        engine.submit(Request(PROMPT, (Choose(options),)))


def test_options_do_not_drive_prompts_from_the_cache(tiny_int8):
    """Of forty pages a prompt takes twenty, three questions three each, and the options of a question seven."""
    with Engine(byte_model(tiny_int8), cache_tokens=40 * 16) as engine:
        long = Request(tuple(b"what is asked again. " * 15), (Decode(1),))
        engine.submit(long).result()
        for animal in (b"cat", b"dog", b"owl"):
            question = Request(tuple(animal + b" food did not come at all. team:"), (Choose(options_of(TEAMS)),))
            engine.submit(question).result()
        assert engine.stats.pages_used == 0
        assert sum(page.filled > 0 for page in engine._scheduler.pool.pages) < 40, "some were never used"
        before = engine.stats.reused_tokens
        engine.submit(long).result()
        assert engine.stats.reused_tokens - before == len(long.prompt) - 1


def test_a_choice_is_checked_before_it_runs(engine):
    with pytest.raises(EngineError, match="nothing to choose from"):
        Choose(())
    with pytest.raises(EngineError, match="1 biases for 2 options"):
        Choose(((1,), (2,)), bias=(0.5,))
    with pytest.raises(EngineError, match="token id 5000"):
        engine.submit(Request(PROMPT, (Choose(((5000,), (2,))),)))
    with pytest.raises(EngineError, match="does not fit"):
        engine.submit(Request(PROMPT, (Choose((tuple([7] * 20_000), (2,))),)))


def test_scores_are_the_sums_that_scoring_each_continuation_gives(engine):
    options = options_of(TEAMS)
    result = engine.submit(Request(PROMPT, (Choose(options),))).result()
    expected = [math.fsum(each) for each in engine.score(PROMPT, options)]
    assert result.steps[0].scores == pytest.approx(expected, abs=1e-4)
    best = max(range(len(options)), key=expected.__getitem__)
    assert result.steps[0].text == f" {TEAMS[best]}\n"
    assert result.steps[0].finish_reason == "chosen"


def test_what_options_share_is_computed_once(engine):
    usage = engine.submit(Request(PROMPT, (Choose(options_of(TEAMS)),))).result().usage
    # A token goes through the model once for all options that begin alike; the last one is only predicted.
    beginnings = {option[:i] for option in options_of(TEAMS) for i in range(1, len(option))}
    assert usage.scored_tokens == len(beginnings)
    assert usage.decoded_tokens == 0


def test_the_end_of_the_answer_can_be_part_of_an_option(engine):
    options = options_of(TEAMS, end=(END,))
    result = engine.submit(Request(PROMPT, (Choose(options),))).result()
    (eos,) = engine.model.tokenizer.eos_ids
    expected = [math.fsum(each) for each in engine.score(PROMPT, [(*option[:-1], eos) for option in options])]
    assert result.steps[0].scores == pytest.approx(expected, abs=1e-4)
    assert END not in result.steps[0].tokens


def test_text_goes_on_after_a_choice_as_after_forced_text(engine):
    after = (Forced(tuple(b"urgency:")), Decode(12, ignore_eos=True))
    chosen = engine.submit(Request(PROMPT, (Choose(options_of(TEAMS)), *after))).result()
    forced = engine.submit(Request((*PROMPT, *chosen.steps[0].tokens), after)).result()
    assert chosen.steps[1:] == forced.steps


def test_bias_moves_the_choice_and_not_the_scores(engine):
    options = options_of(("yes", "no"))
    plain = engine.submit(Request(PROMPT, (Choose(options),))).result().steps[0]
    loser = min((0, 1), key=plain.scores.__getitem__)
    bias = tuple(100.0 if i == loser else 0.0 for i in (0, 1))
    biased = engine.submit(Request(PROMPT, (Choose(options, bias=bias),))).result().steps[0]
    assert biased.scores == plain.scores
    assert biased.tokens == options[loser]


def test_below_the_threshold_the_other_option_is_taken(engine):
    options = options_of(("yes", "no", "none"))
    scores = engine.submit(Request(PROMPT, (Choose(options),))).result().steps[0].scores
    top = max(option_probabilities(scores))
    for threshold, other in ((top + 1e-6, True), (top - 1e-6, False)):
        step = Choose(options, threshold=threshold, otherwise=2)
        taken = engine.submit(Request(PROMPT, (step,))).result().steps[0].text
        assert (taken == " none\n") is (other or scores[2] == max(scores))


def test_at_a_temperature_options_are_drawn_by_their_probability(engine):
    options = options_of(("yes", "no"))
    step = Choose(options, temperature=20.0)
    results = [f.result() for f in engine.submit_samples(Request(PROMPT, (step,), Sampling(temperature=1.0)), 400)]
    expected = step.probabilities(results[0].steps[0].scores)[0]
    share = sum(result.steps[0].tokens == options[0] for result in results) / 400
    assert abs(share - expected) < 0.1  # four standard deviations
    assert len({result.steps[0].scores for result in results}) == 1


def test_one_option_needs_no_model(engine):
    before = engine.stats.steps
    result = engine.submit(Request(PROMPT, (Choose(((5, 6),)),))).result()
    assert result.steps[0].tokens == (5, 6)
    assert engine.stats.steps == before


def test_a_cancelled_choice_leaves_nothing_behind(engine):
    futures = [engine.submit(Request((*PROMPT, i), (Choose(options_of(TEAMS)),))) for i in range(20)]
    for future in futures[::2]:
        future.cancel()
    assert all(future.result().steps[0].scores for future in futures[1::2])


@pytest.mark.skipif(native_level() == 0, reason="bit-equality is a promise of the compiled decoder")
def test_scores_do_not_depend_on_the_batch(engine):
    requests = [Request((*PROMPT, 32, 97 + i % 9), (Choose(options_of(TEAMS)),)) for i in range(64)]
    together = [future.result().steps for future in [engine.submit(request) for request in requests]]
    for request, steps in zip(requests[:9], together, strict=False):
        engine._scheduler.pool.clear()
        assert engine.submit(request).result().steps == steps


def test_the_real_model_scores_as_transformers_does(model_fp32):
    from transformers import AutoModelForCausalLM

    tokenizer = model_fp32.tokenizer
    prompt = tokenizer.encode("Question: How far is the moon?\nKind of answer:")
    options = [tokenizer.encode(f" {kind}\n") for kind in ("number", "place", "person", "a number in words")]
    with Engine(model_fp32) as engine:
        scores = engine.submit(Request(tuple(prompt), (Choose(tuple(map(tuple, options))),))).result().steps[0].scores
    from still.backends.models import resolve

    path = resolve("smollm2-135m").path
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    for option, score in zip(options, scores, strict=True):
        with torch.inference_mode():
            logprobs = reference(torch.tensor([prompt + option])).logits[0].log_softmax(-1)
        rows = torch.arange(len(prompt) - 1, len(prompt) + len(option) - 1)
        assert score == pytest.approx(float(logprobs[rows, torch.tensor(option)].sum()), abs=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab ", min_size=1, max_size=24), min_size=2, max_size=9, unique=True), st.booleans())
def test_any_options_are_scored_like_their_continuations(engine, texts, hot):
    options = options_of(texts)
    request = Request(PROMPT, (Choose(options),), Sampling(temperature=float(hot)))
    scores = engine.submit(request).result().steps[0].scores
    assert scores == pytest.approx([math.fsum(each) for each in engine.score(PROMPT, options)], abs=1e-3)
