"""Halves of a batch side by side: the numbers and gradients of PEFT's own model with every row alone."""

import peft
import pytest
import torch
import transformers
from still.optimizers.weights.lanes import in_lanes
from still.optimizers.weights.lora import Lora
from still.optimizers.weights.row import Row
from still.optimizers.weights.student import Student
from weights_toys import open_student, write_base

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


@pytest.mark.parametrize("graph", [True, False])
def test_lanes_build_a_graph_only_where_the_caller_has_gradients_on(graph, two_threads):
    """In whose threads the caller's setting does not hold by itself."""
    weight, seen = torch.randn(3, requires_grad=True), []

    def forward(part):
        found = torch.stack([each @ weight for each in part])
        seen.append(found.requires_grad)
        return found

    with torch.set_grad_enabled(graph):
        joined = in_lanes(forward, [torch.randn(3) for _ in range(4)], [weight])
    assert seen == [graph, graph] and joined.requires_grad == graph


def test_a_reference_builds_no_graph(base, two_threads, monkeypatch):
    seen, plain = [], Student._logprobs

    def watched(self, rows):
        found = plain(self, rows)
        seen.append(found.requires_grad)
        return found

    monkeypatch.setattr(Student, "_logprobs", watched)
    student = open_student(base)
    reference = student.reference(BATCH)
    assert seen == [False, False]
    for one, other in zip(reference, student.token_logprobs(BATCH), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
