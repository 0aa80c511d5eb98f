"""The student's step, which is not PEFT's: trees of tokens, halves of batches, one operation per adapted layer."""

import shutil

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from still.optimizers.weights.adapted import adapted_linear
from still.optimizers.weights.lanes import in_lanes
from still.optimizers.weights.lora import Lora
from still.optimizers.weights.row import Row
from still.optimizers.weights.student import Student
from weights_toys import END, SIZES, open_student, write_base

BATCH = [
    Row(tuple(text.encode()), tuple(i >= start for i in range(len(text))))
    for text, start in (("sum 12=odd", 7), ("sum 13=even", 7), ("sum 12=even", 7), ("12", 1), ("sum", 2), ("sum 9=odd!", 6))
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("student") / "base")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2, "the setting is given back"
    torch.set_num_threads(before)


def plain(base, rank=8):
    """PEFT's own model with random weights, and the gradients of a weighted sum of log-probabilities, each row alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    network = peft.get_peft_model(model, Lora(r=rank, alpha=16).config())
    torch.manual_seed(1)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, 0, 0.2)
    found = []
    for row in BATCH:
        logprobs = network(torch.tensor([row.tokens])).logits[0, :-1].log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(row.tokens[1:])[:, None])[:, 0]
        found.append(chosen[torch.tensor(row.loss[1:])])
    return trained, found


def weighted(found):
    return sum((i + 1) * (each * torch.arange(1, len(each) + 1)).sum() for i, each in enumerate(found))


def test_numbers_and_gradients_are_those_of_peft_with_every_row_alone(base, two_threads):
    trained, expected = plain(base)
    weighted(expected).backward()
    student = open_student(base)
    assert student._has_lanes
    with torch.no_grad():
        for mine, theirs in zip(student.parameters(), trained, strict=True):
            mine.copy_(theirs)
    found = student.token_logprobs(BATCH)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    weighted(found).backward()
    for mine, theirs in zip(student.parameters(), trained, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-3, rtol=1e-3)


def test_rows_longer_than_a_window_see_what_the_engine_lets_them_see(tmp_path):
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=SIZES["vocab_size"], bos_token_id=END, eos_token_id=END,
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.MistralForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    shutil.copytree(write_base(tmp_path / "base"), tmp_path / "tokenizer")
    for file in (tmp_path / "tokenizer").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "model")
    student = Student.open(str(tmp_path / "model"), Lora(r=2, alpha=4), precision="fp32")
    for found, row in zip(student.reference(BATCH), BATCH, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([row.tokens])).logits[0, :-1].log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(row.tokens[1:])[:, None])[:, 0]
        torch.testing.assert_close(found, chosen[torch.tensor(row.loss[1:])], atol=1e-5, rtol=1e-4)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_an_adapted_layer_is_its_formula(seed, biased, first):
    torch.manual_seed(seed)
    x, weight, down, up = torch.randn(2, 3, 5), torch.randn(7, 5), torch.randn(2, 5), torch.randn(7, 2)
    bias = torch.randn(7) if biased else None
    leaves = [x.requires_grad_(not first), down.requires_grad_(), up.requires_grad_()]
    direction = torch.randn(2, 3, 7)
    wanted = x @ (weight + 0.5 * up @ down).t() + (bias if biased else 0)
    made = adapted_linear(x, weight, bias, down, up, 0.5)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-4)
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    for mine, theirs in zip(
        torch.autograd.grad((made * direction).sum(), asked), torch.autograd.grad((wanted * direction).sum(), asked),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_lanes_join_results_in_order_and_sum_gradients(two_threads):
    weight, other = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    items = [torch.randn(n, 3) for n in (1, 4, 2, 2, 1)]

    def forward(part):
        return torch.cat([(each @ weight).tanh() for each in part])

    joined = in_lanes(forward, items, [weight, other])
    torch.testing.assert_close(joined, forward(items))
    direction = torch.arange(10.0)
    (joined * direction).sum().backward()
    expected = torch.autograd.grad((forward(items) * direction).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected)
    assert other.grad is None, "what a lane does not use has no gradient"


def test_an_error_in_a_lane_is_the_callers(two_threads):
    def fail(part):
        raise ValueError(f"{len(part)} items")

    with pytest.raises(ValueError, match="3 items"):
        in_lanes(fail, [1, 2, 3, 4, 5], [torch.zeros(1, requires_grad=True)])
