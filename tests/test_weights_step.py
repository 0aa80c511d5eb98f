"""The step of training: rows as a trie, attention over it, LoRA layers of few operations; against what they stand for."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from still.optimizers.weights import layout, policy
from still.optimizers.weights.adapted import adapt, adapted_linear
from still.optimizers.weights.layout import Layout
from still.optimizers.weights.lora import Lora
from still.optimizers.weights.row import Row
from still.optimizers.weights.sft import SftSettings, train_sft
from still.optimizers.weights.student import Student
from weights_toys import SIZES, row, write_base

ROWS = [
    row("the prompt=", "odd"), row("the prompt=", "even"), row("the other=", "o"), row("a", "b"), row("the prompt=", "odd"),
    row("the", " prompt=odd and more"),
]  # fmt: skip

short = st.lists(st.integers(0, 2), min_size=2, max_size=6).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.lists(short, min_size=1, max_size=8))
def test_a_node_is_a_prefix_and_is_computed_once(drawn):
    rows = [Row(tokens, (False,) + (True,) * (len(tokens) - 1)) for tokens in drawn]
    made = Layout.of(rows, "cpu")
    prefixes = {tokens[:i] for tokens in drawn for i in range(1, len(tokens))}
    assert len(made.ids) == len(prefixes)
    spelled = {}
    for path, own in zip(made.paths.tolist(), made.own.tolist(), strict=True):
        for depth, node in enumerate(path):
            if depth and node == 0:
                break  # filled up
            assert made.depths[node] == depth
            prefix = tuple(made.ids[path[: depth + 1]].tolist())
            assert spelled.setdefault(node, prefix) == prefix
        assert set(own) <= set(path) | {0}
    assert set(spelled.values()) == prefixes
    # Every node is where `places` says, and every loss token comes after its own prefix.
    assert made.own.flatten()[made.places].tolist() == list(range(len(prefixes)))
    wanted = [(tokens[:i], tokens[i]) for tokens in drawn for i in range(1, len(tokens))]
    found = [spelled[node] for node in made.parents[made.asked].tolist()]
    assert list(zip(found, made.targets.tolist(), strict=True)) == wanted


def test_layers_are_their_formula():
    """y = x Wᵀ + bias + s x Aᵀ Bᵀ, and the gradients of Σ g y that follow, written out."""
    torch.manual_seed(0)
    sizes = (2, 5, 6), (4, 6), (4,), (3, 6), (4, 3), (2, 5, 4)
    x, w, bias, a, b, g = (torch.randn(*size, dtype=torch.float64) for size in sizes)
    s = 0.7
    for each in (x, a, b):
        each.requires_grad_()
    y = adapted_linear(x, w, bias, a, b, s)
    torch.testing.assert_close(y, x @ w.T + bias + s * x @ a.T @ b.T)
    (g * y).sum().backward()
    flat, out = x.detach().view(-1, 6), g.view(-1, 4)
    with torch.no_grad():
        torch.testing.assert_close(x.grad, g @ w + s * g @ b @ a)
        torch.testing.assert_close(a.grad, (s * b.T @ out.T @ flat).float().double())
        torch.testing.assert_close(b.grad, (s * out.T @ flat @ a.T).float().double())


def test_layers_in_bfloat16_are_no_less_exact_than_pefts(tmp_path):
    """Gradients of a network of bfloat16 against those of the same one in float32: ours beside PEFT's under autocast."""
    from peft import get_peft_model

    folder, ids = write_base(tmp_path / "base"), torch.tensor([list(b"the prompt=odd")])

    def gradient(dtype, ours):
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(dtype)
        torch.manual_seed(0)
        made = get_peft_model(base, Lora(r=4).config())
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.1)
        assert not ours or adapt(made)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16 and not ours):
            logits = made(input_ids=ids).logits.float()
        logits.log_softmax(-1)[..., 7].mean().backward()
        trained = [parameter.grad for parameter in made.parameters() if parameter.requires_grad]
        assert all(each.dtype == torch.float32 for each in trained)
        return torch.cat([each.flatten() for each in trained])

    truth = gradient(torch.float32, ours=False)
    off, pefts = ((gradient(torch.bfloat16, ours) - truth).norm() for ours in (True, False))
    assert off < 1.3 * pefts
    assert pefts < 0.2 * truth.norm()


def test_dropout_is_left_to_peft(tmp_path):
    student = Student.open(str(write_base(tmp_path / "base")), Lora(r=4, dropout=0.5), precision="fp32")
    torch.manual_seed(1)
    first = student.token_logprobs(ROWS)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_(0, 0.3)
    assert not torch.equal(torch.cat(student.token_logprobs(ROWS)), torch.cat(student.token_logprobs(ROWS)))
    assert len(first) == len(ROWS)


def test_an_adapter_learns_over_four_bits(tmp_path):
    """QLoRA: the base in NF4, PEFT's layers for it; its log-probabilities are near those of the base as it is."""
    pytest.importorskip("bitsandbytes")
    folder = str(write_base(tmp_path / "base", hidden_size=64, intermediate_size=128))
    four, whole = (Student.open(folder, Lora(r=4), precision=precision) for precision in ("nf4", "fp32"))

    def gradient():
        torch.cat(four.token_logprobs(ROWS)).sum().backward()
        found = [parameter.grad.clone() for parameter in four.parameters()]
        four.network.zero_grad()
        return found

    before = gradient()
    found, wanted = (torch.cat(student.reference(ROWS)) for student in (four, whole))
    # bitsandbytes has a form for inference whose gradients are silently wrong: the reference may not bring it about.
    assert all(torch.equal(one, other) for one, other in zip(before, gradient(), strict=True))
    assert (found - wanted).abs().mean() < 0.2 * wanted.abs().mean()
    assert all(parameter.dtype == torch.float32 for parameter in four.parameters())
    record = train_sft(four, ROWS * 4, SftSettings(epochs=6, batch=8, learning_rate=1e-2), folder=tmp_path / "training")
    assert record.losses[-1] < 0.5 * record.losses[0]
    assert record.memory > 1e7
    whole.load(tmp_path / "training" / "best")


KINDS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {}),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig, {"sliding_window": 5}),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {"head_dim": 12}),
    "gemma3": (
        transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig,
        {"sliding_window": 5, "head_dim": 12, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("limit", [layout.EXPLICIT, 0], ids=["explicit", "fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_rows_one_by_one(kind, limit, monkeypatch):
    """Values and gradients are those of transformers' own attention and PEFT's own layers, each row alone."""
    from peft import get_peft_model

    monkeypatch.setattr(layout, "EXPLICIT", limit)
    transformers.AttentionInterface.register("still_rows", layout.attention)
    model, config, more = KINDS[kind]

    def network(implementation):
        torch.manual_seed(0)
        made = model(config(**SIZES, **more, initializer_range=0.2, attn_implementation=implementation))
        made = get_peft_model(made, Lora(r=4).config())
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.1)
        return made

    own = Student(network("still_rows"), "fp32")
    plain = network("eager")
    found = own.token_logprobs(ROWS)
    total = 0.0
    for each, values in zip(ROWS, found, strict=True):
        tokens = torch.tensor(each.tokens)
        logprobs = plain(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        expected = logprobs[torch.tensor(each.loss[1:])]
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)
        total = total + expected.square().sum()
    torch.cat(found).square().sum().backward()
    total.backward()
    for (name, one), (_, other) in zip(own.network.named_parameters(), plain.named_parameters(), strict=True):
        if one.requires_grad:
            assert (one.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-6, name


@pytest.mark.parametrize("paged", [False, True])
def test_steps_go_on_where_they_were_left(paged, monkeypatch):
    """With bitsandbytes' paged AdamW too, which does without pages on a CPU."""
    if paged:
        optim = pytest.importorskip("bitsandbytes.optim")
        monkeypatch.setattr(policy, "_adamw", lambda given, rate: optim.PagedAdamW(given, lr=rate, weight_decay=0.0))

    class Point:
        def __init__(self):
            self.at = torch.nn.Parameter(torch.linspace(1.0, 2.0, 64))

        def parameters(self):
            return [self.at]

    def step(point, descent):
        descent.add((point.at**3).sum())
        descent.take()

    whole, broken = Point(), Point()
    descents = [policy.Descent(point, learning_rate=0.1, steps=8, warmup=0.25) for point in (whole, broken)]
    for point, descent in zip((whole, broken), descents, strict=True):
        for _ in range(4):
            step(point, descent)
    kept = {name: value.clone() for name, value in descents[1].state().items()}
    later = policy.Descent(broken, learning_rate=0.1, steps=8, warmup=0.25)
    later.restore(kept)
    for _ in range(4):
        step(whole, descents[0])
        step(broken, later)
    assert torch.equal(whole.at, broken.at)
    assert not torch.equal(whole.at, torch.linspace(1.0, 2.0, 64))


@settings(max_examples=60, deadline=None)
@given(st.lists(short, min_size=1, max_size=8), st.integers(1, 30))
def test_parts_hold_every_row_once_and_no_more_than_they_may(drawn, most):
    rows = [Row(tokens, (False,) + (True,) * (len(tokens) - 1)) for tokens in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "PASS_NODES", most)
        parts = layout.parts_of(rows)
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))

    def nodes(part):
        return len({rows[i].tokens[:n] for i in part for n in range(1, len(rows[i].tokens))})

    for part in parts:
        assert part == sorted(part)
        assert nodes(part) <= most or len({rows[i].tokens[:-1] for i in part}) == 1, "one row may be longer"
    assert (len(parts) == 1) == (nodes(range(len(rows))) <= most or len({each[:-1] for each in drawn}) == 1)


def test_dropout_is_the_same_when_a_part_is_computed_again(tmp_path, monkeypatch):
    """Gradients of rows in parts are those of a graph for each part, from the same draws."""
    folder = str(write_base(tmp_path / "base"))
    monkeypatch.setattr(layout, "PASS_NODES", 20)
    parts = layout.parts_of(ROWS)
    assert len(parts) > 1

    def gradient(compute):
        student = Student.open(folder, Lora(r=4, dropout=0.5), precision="fp32")
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.normal_(0, 0.3)
        compute(student).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in student.parameters()])

    def each_its_graph(student):
        with student._drawing():
            return torch.cat([
                student._logprobs(sorted((ROWS[i] for i in part), key=lambda each: each.tokens)) for part in parts
            ])  # fmt: skip

    found = gradient(lambda student: torch.cat(student.token_logprobs(ROWS)))
    wanted = gradient(each_its_graph)
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
