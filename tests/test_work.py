"""What candidates cost, by a measure that no cache changes."""

from still.optimizers.candidate import Candidate, PredictorState
from still.optimizers.context import Outcome, Standing
from still.optimizers.work import SHARE, Allowance, total_work, work


def standing(name, prompts, nearest=None, cached=0, fields=None):
    outcomes = tuple(Outcome(1.0, prompt_tokens=tokens, cached_tokens=cached, decoded_tokens=2) for tokens in prompts)
    state = PredictorState(({"x": name},), nearest=nearest, fields=fields or {})
    return Standing(Candidate(name, "test", {"p": state}), outcomes)


def test_what_prompts_begin_with_counts_once_unless_it_is_chosen_per_input():
    assert work(standing("fixed", [100, 110, 105])) == 100 + 0 + 10 + 5 + 6
    assert work(standing("nearest", [100, 110, 105], nearest=1)) == 315 + 6
    assert work(standing("fixed", [100, 110, 105], cached=90)) == work(standing("fixed", [100, 110, 105]))
    assert work(standing("nothing", [])) == 0


def test_a_candidate_that_was_measured_twice_counts_once():
    short, long = standing("a", [10]), standing("a", [10, 20])
    assert total_work([short, long, standing("b", [5])]) == work(long) + work(standing("b", [5]))


def test_calibrations_are_no_work():
    fields = {"y": {"decide": "score"}}
    calibrated = {"y": {**fields["y"], "calibration": {"bias": {"a": 1.0}, "temperature": 2.0}}}
    plain, fitted = (standing("a", [10, 20], fields=given) for given in (fields, calibrated))
    assert total_work([plain, fitted]) == work(plain)
    assert total_work([plain, standing("a", [10, 20])]) == 2 * work(plain), "decoded it is asked anew"
    allowance = Allowance([plain])
    for _ in range(10):
        allowance.book(fitted, gained=False)
    assert not allowance.is_spent


def test_an_allowance_is_a_share_of_earlier_work_and_whole_again_after_a_gain():
    before, waste = standing("before", [98]), [standing(f"waste {i}", [8]) for i in range(9)]
    allowance = Allowance([before])
    affordable = int(SHARE * work(before)) // work(waste[0])
    for _ in range(affordable):
        allowance.book(waste.pop(), gained=False)
        assert not allowance.is_spent
    allowance.book(waste.pop(), gained=True)
    for spent in (*[False] * affordable, True):
        allowance.book(waste.pop(), gained=False)
        assert allowance.is_spent == spent


def test_where_nothing_was_done_before_anything_is_allowed():
    allowance = Allowance([])
    allowance.book(standing("much", [10**6]), gained=False)
    assert not allowance.is_spent
