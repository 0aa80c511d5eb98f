"""The audit finds the faults that were planted, and says what they are in a handful of lines."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import still
from hypothesis import given
from hypothesis import strategies as st
from still.compiler.audit import LONG, audit
from still.compiler.balance import balance
from still.compiler.dataset import Dataset
from still.errors import DatasetError

VOCABULARY = [f"{a}{b}" for a in ("ka", "to", "mil", "sor", "ven", "pra") for b in ("ra", "net", "dis", "ol", "um", "ik")]


def data(*texts, **labels):
    rows = [{"q": text} | {name: values[i] for name, values in labels.items()} for i, text in enumerate(texts)]
    return Dataset(rows, inputs=["q"])


def sentences(n, words, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(VOCABULARY, k=words)) for _ in range(n)]


def faulty():
    train = data(
        *("where is my parcel", "Where is my PARCEL", "how do I cancel the whole order", "", "x" * (LONG + 1)),
        *sentences(25, 8),
        team=["shipping", "returns", "orders", "orders", "orders", *["orders"] * 25],
        id=list(range(30)),
    )
    dev = data(
        "where is my parcel", "how do I cancel this whole order", "entirely new", team=["shipping", "orders", "legal"]
    )
    return train, dev


def test_audit_finds_what_was_planted():
    train, dev = faulty()
    found = still.audit(train, dev)
    assert found.splits == {"train": train, "dev": dev}
    repeats = {(repeat.split, repeat.within): repeat for repeat in found.repeats}
    assert set(repeats) == {("train", "train"), ("dev", "train"), ("dev", "dev")}
    assert repeats["train", "train"].exact == ((1, 0),)
    assert repeats["dev", "train"].exact == ((0, 0),)
    assert repeats["dev", "train"].near == ()
    nearer = {(r.split, r.within): r for r in audit(train, dev, threshold=0.6).repeats}["dev", "train"].near
    assert [near[:2] for near in nearer] == [(1, 2)]
    assert repeats["dev", "dev"].exact == repeats["dev", "dev"].near == ()
    (conflict,) = found.conflicts
    assert (conflict.field, set(conflict.values)) == ("team", {"shipping", "returns"})
    assert conflict.rows == (("train", 0), ("train", 1), ("dev", 0))
    assert (found.empty, found.long) == ({"train": (3,), "dev": ()}, {"train": (4,), "dev": ()})
    (team,) = found.balances
    assert (team.majority, team.counts["orders"], team.unseen) == ("orders", (28, 1), ("legal",))
    assert team.baseline == pytest.approx((28 / 30, 1 / 3))


def test_notes_are_a_handful_and_say_what_matters():
    train, dev = faulty()
    notes = train.audit(dev, threshold=0.6).notes()
    assert 1 < len(notes) <= 6
    assert notes[0].startswith("2 of 3 dev examples have the inputs of a train example (1 exactly, 1 nearly)")
    assert any("'where is my parcel' is 'shipping' and 'returns'" in note for note in notes)
    assert any("train has no row with 'legal'" in note for note in notes)
    assert any("lack an input: 1" in note for note in notes)
    clean = data(*sentences(40, 8), a=list("ab") * 20).split(0.5, 0.5, 0, stratify="a")
    assert clean.train.audit(clean.dev).notes() == ()
    lopsided = data(*sentences(40, 8), a=["a"] * 30 + ["b"] * 10)
    assert lopsided.audit().notes() == ("a: always answering 'a' is right for 75% of train",)


def test_text_and_page_show_examples_and_escape():
    texts = ["<b>bold</b> question one", "<B>bold</B> question  one", "another <i>thing</i>"]
    shown = data(*texts, a=["<x>", "<y>", "<x>"]).audit()
    assert "train[1] = train[0]" in str(shown)
    assert "always answering '<x>' scores train 0.667" not in str(shown)  # two values in three rows are no classes
    assert "<b>" not in shown._repr_html_().lower()
    assert "&lt;x&gt;" in shown._repr_html_()


def test_repeats_of_equal_rows_are_all_counted():
    train = data("how do I reset my password?", "a", "b")
    dev = data("how do I reset my passwords?", "HOW do I reset my passwords?", "c")
    found = {(r.split, r.within): r for r in audit(train, dev).repeats}
    assert [near[:2] for near in found["dev", "train"].near] == [(0, 0), (1, 0)]
    assert found["dev", "dev"].exact == ((1, 0),)


def test_a_row_that_is_exactly_there_is_not_counted_as_nearly_there():
    train = data("how do I reset my password?", "how do I reset my passwords?")
    across = audit(train, data("How do I reset my password?")).repeats[1]
    assert (across.split, across.within, across.exact, across.near) == ("dev", "train", ((0, 0),), ())


def test_identifiers_optional_inputs_and_free_texts():
    rows = [
        {"q": f"q{i % 25}", "note": None if i % 10 else "n", "id": i, "answer": f"t{i}" if i else "t25"} for i in range(30)
    ]
    found = audit(Dataset(rows, inputs=["q", "note"]))
    assert found.empty == {"train": ()}
    assert found.balances == ()
    assert {conflict.field for conflict in found.conflicts} == {"answer"}


def test_audit_refuses_what_it_cannot_compare():
    train, _ = faulty()
    with pytest.raises(DatasetError, match="dev is a list"):
        audit(train, [1])
    with pytest.raises(DatasetError, match="dev has the inputs text, train q"):
        audit(train, Dataset([{"text": "x"}], inputs=["text"]))
    with pytest.raises(DatasetError, match="threshold"):
        audit(train, threshold=2)


@given(st.lists(st.sampled_from(["a", "b", True, 3, None]), min_size=1, max_size=40))
def test_balance_counts(values):
    found = balance("f", [values, values[:3]])
    if found is None:
        assert len(set(map(str, values))) * 2 > len(values) + 3
        return
    assert sum(counts[0] for counts in found.counts.values()) == len(values)
    assert found.baseline[0] == max(Counter(map(str, values)).values()) / len(values)
    assert found.unseen == ()


def test_lists_and_many_values_are_no_classes():
    assert balance("f", [[["a"], ["a"], "b", "b"]]) is None
    assert balance("f", [[str(i) for i in range(101)] * 5]) is None
    assert balance("f", [[str(i) for i in range(100)] * 5]) is not None
