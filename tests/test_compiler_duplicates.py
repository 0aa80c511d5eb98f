"""Duplicates, near duplicates, and splits that do not leak: against brute force and planted rows."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from still.compiler.dataset import Dataset
from still.compiler.dealing import round_table
from still.compiler.duplicates import near_pairs, similarity
from still.compiler.minhash import CROWD, candidate_pairs
from still.errors import DatasetError

VOCABULARY = [f"{a}{b}" for a in ("ka", "to", "mil", "sor", "ven", "pra") for b in ("ra", "net", "dis", "ol", "um", "ik")]


def data(*texts, **labels):
    rows = [{"q": text} | {name: values[i] for name, values in labels.items()} for i, text in enumerate(texts)]
    return Dataset(rows, inputs=["q"])


def sentences(n, words, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(VOCABULARY, k=words)) for _ in range(n)]


def jaccard(first, second):
    """The definition, written independently: pairs of words, or runs of three characters where a text is short."""

    def grams(text, by_words):
        units = re.findall(r"\w+", text) if by_words else text
        size = 2 if by_words else 3
        return {tuple(units[i : i + size]) for i in range(len(units) - size + 1)} or {text}

    first, second = (" ".join(text.lower().split()) for text in (first, second))
    by_words = min(len(re.findall(r"\w+", text)) for text in (first, second)) >= 20
    ours, theirs = grams(first, by_words), grams(second, by_words)
    return len(ours & theirs) / len(ours | theirs)


# --- near duplicates


def mutated(text, draw):
    words = text.split()
    place = draw.randrange(len(words))
    edit = draw.choice(["swap", "drop", "add"])
    if edit == "drop":
        return " ".join(words[:place] + words[place + 1 :])
    return " ".join([*words[:place], "zebra", *words[place + (edit == "swap") :]])


@pytest.mark.parametrize("words", [6, 18, 21, 60])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_near_duplicates_are_those_that_brute_force_finds(words, threshold):
    draw = random.Random(words)
    texts = sentences(120, words)
    texts += [mutated(text, draw) for text in texts[:60]]
    found = {(pair.first, pair.second): pair.similarity for pair in data(*texts).near_duplicates(threshold)}
    expected = {
        (i, j): value
        for i, j in combinations(range(len(texts)), 2)
        if texts[i] != texts[j] and (value := jaccard(texts[i], texts[j])) >= threshold
    }
    assert found == pytest.approx(expected)
    assert expected or threshold > 0.5


def test_planted_near_duplicates_are_found_in_a_crowd_of_others():
    draw = random.Random(7)
    texts = sentences(2000, 40)
    texts += [mutated(text, draw) for text in texts[:100]]
    found = data(*texts).near_duplicates(0.8)
    assert {(pair.first, pair.second) for pair in found} == {(i, 2000 + i) for i in range(100)}
    assert [pair.similarity for pair in found] == sorted((pair.similarity for pair in found), reverse=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", "bb", "ccc", "dog", "."]), max_size=30).map(" ".join), min_size=2, max_size=8),
    st.sampled_from([0.3, 0.6, 0.9, 1.0]),
)
def test_what_is_reported_is_true(texts, threshold):
    for first, second, value in data(*texts).near_duplicates(threshold):
        assert first < second
        assert value >= threshold
        assert value == pytest.approx(jaccard(texts[first], texts[second]))


def test_equal_rows_are_compared_once_and_are_no_near_pair():
    text = "how do I change the delivery address of my order"
    rows = data(text, text.upper(), text + " today", "something else", text + "  today")
    assert [pair[:2] for pair in rows.near_duplicates(0.7)] == [(0, 2)]
    assert rows.duplicates() == [(0, 1), (2, 4)]


def test_every_input_must_be_similar():
    long = " ".join(sentences(1, 200))
    questions = ["who built it", "when was it sold", "who built it?"]
    rows = Dataset([{"context": long, "question": q} for q in questions], inputs=["context", "question"])
    assert [pair[:2] for pair in rows.near_duplicates(0.8)] == [(0, 2)]
    swapped = Dataset([{"a": "red fox", "b": "blue"}, {"a": "blue", "b": "red fox"}], inputs=["a", "b"])
    assert swapped.near_duplicates(0.5) == []


def test_texts_without_words_and_inputs_that_are_no_text():
    cases = [("", " "), ("…", "!!!"), ("東京の天気はどうですか教えてください", "東京の天気はどうですか教えて下さい")]
    assert [len(data(*case).near_duplicates(0.6)) for case in cases] == [0, 0, 1]
    rows = data({"n": [1, 2, 3], "s": "long enough text"}, {"n": [1, 2, 4], "s": "long enough text"}, 17, 18, None)
    assert [pair[:2] for pair in rows.near_duplicates(0.8)] == [(0, 1)]


def test_the_border_between_short_and_long_texts_hides_no_pair():
    # 19 and 20 words: compared by characters, though one of the two counts as long.
    nineteen = " ".join(sentences(1, 19))
    rows = data(nineteen, nineteen + " too", *sentences(30, 20, seed=5), *sentences(30, 300, seed=6))
    assert (0, 1) in {pair[:2] for pair in rows.near_duplicates(0.8)}


def test_near_duplicates_are_the_same_in_another_process():
    code = (
        "import random\nfrom still.compiler.dataset import Dataset\n"
        "draw = random.Random(3)\n"
        "rows = [{'q': ' '.join(draw.choices('abcdefgh', k=25))} for _ in range(300)]\n"
        "print(Dataset(rows, inputs=['q']).near_duplicates(0.6, seed=2))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert "similarity" in runs[0].stdout


def test_a_crowd_links_every_row_without_listing_every_pair():
    n = 40 * CROWD
    texts = [f"please book a table for two people at the old house restaurant on day {i}" for i in range(n)]
    sides = [int(i >= n / 2) for i in range(n)]
    pairs = near_pairs([json.dumps({"q": text}) for text in texts], 0.7, sides)
    assert len(pairs) < n * n / 8
    met = defaultdict(set)
    for pair in pairs:
        met[pair.first].add(sides[pair.second])
        met[pair.second].add(sides[pair.first])
    assert sum(met[i] == {0, 1} for i in range(n)) > 0.99 * n


@pytest.mark.parametrize("threshold", [0, 1.5, -0.1, True, "0.8", float("nan"), None])
def test_impossible_thresholds(threshold):
    with pytest.raises(DatasetError, match="threshold="):
        data("a", "b").near_duplicates(threshold)


def test_candidates_miss_next_to_nothing():
    draw = random.Random(1)
    sets, expected = [], []
    for i in range(0, 1200, 2):
        base = [f"{i}-{j}" for j in range(90)]
        other = base[:80] + [f"{i}+{j}" for j in range(draw.randrange(11))]  # similarities from 80 / 100 to 80 / 90
        sets += [base, other]
        expected.append((i, i + 1))
    for seed in range(3):
        found = candidate_pairs(sets, 0.8, [0] * len(sets), seed)
        assert len(set(expected) - set(found)) <= 2
        assert set(found) <= set(expected)


def test_overlap_near():
    ours = data("How do I reset my password?", "where is my parcel", "how do I reset my passwords?", "unrelated words")
    theirs = data("how do i reset my password?", "tell me a joke")
    assert ours.overlap(theirs) == [0]
    assert ours.overlap(theirs, near=True) == [0, 2]
    assert ours.overlap(theirs, near=True, threshold=0.99) == [0]
    assert theirs.overlap(ours, near=True) == [0]


def test_similarity_of_different_fields_is_nothing():
    assert similarity('{"a":"x"}', '{"b":"x"}') == 0.0


# --- splits


@st.composite
def grouped(draw):
    """Texts with repeats, and a label each."""
    texts = draw(st.lists(st.integers(0, 60), min_size=15, max_size=60))
    labels = draw(st.lists(st.sampled_from("abc"), min_size=len(texts), max_size=len(texts)))
    return data(*(f"question {'x' * text}" for text in texts), a=labels, row=list(range(len(texts))))


SIZES = st.sampled_from([(0.6, 0.2, 0.2), (0.5, 0.25, 0.25), (0.3, 0.3, 0.2), (4, 2, 0), (0.6, 0.4, 0)])


@settings(max_examples=150, deadline=None)
@given(grouped(), SIZES, st.integers(0, 3), st.sampled_from([None, "a"]))
def test_split_never_cuts_a_group_and_never_repeats_a_row(rows, sizes, seed, stratify):
    # Such a group can take the room of all other parts, which is an error of its own.
    assume(max(map(len, rows.duplicates()), default=1) <= len(rows) / 10 + 1)
    splits = rows.split(*sizes, seed=seed, stratify=stratify)
    seen = [example.row for part in splits for example in part]
    assert len(seen) == len(set(seen))
    if sum(sizes) == 1:
        assert len(seen) == len(rows)
    for first, second in combinations(splits, 2):
        assert first.overlap(second) == []
    again = rows.split(*sizes, seed=seed, stratify=stratify)
    assert [part.digest for part in again] == [part.digest for part in splits]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("aaaabbbccd"), min_size=10, max_size=120), SIZES, st.integers(0, 3))
def test_stratified_shares_are_within_one_row_per_class(labels, sizes, seed):
    totals = Counter(labels)
    assume(min(totals.values()) > 1)
    rows = data(*(f"question {i}" for i in range(len(labels))), a=labels)
    splits, plain = rows.split(*sizes, seed=seed, stratify="a"), rows.split(*sizes, seed=seed)
    assert [len(part) for part in splits] == [len(part) for part in plain]
    for part in splits:
        counts = Counter(example.a for example in part)
        for name, total in totals.items():
            assert abs(counts[name] - total * len(part) / len(labels)) < 1


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 12), st.integers(0, 5))
def test_classes_with_one_row_stay_in_train(common, rare, seed):
    assume(rare <= 0.5 * (common + rare))
    assume(common + rare >= 5)
    labels = ["x"] * common + [f"rare {i}" for i in range(rare)]
    splits = data(*map(str, range(len(labels))), a=labels).split(0.6, 0.2, 0.2, seed=seed, stratify="a")
    assert {example.a for example in splits.train} >= set(labels[common:])
    assert {example.a for part in splits[1:] for example in part} <= {"x"}


def test_a_class_that_is_one_group_stays_in_train():
    rows = data(*["same input"] * 3, *(f"other {i}" for i in range(17)), a=["rare"] * 3 + ["x"] * 17)
    for seed in range(10):
        splits = rows.split(seed=seed, stratify="a")
        assert Counter(example.a for example in splits.train)["rare"] == 3
        assert [len(part) for part in splits] == [12, 4, 4]


def test_groups_are_spread_in_proportion():
    texts = [f"question {i // 2}" for i in range(200)]
    for seed in range(5):
        splits = data(*texts).split(0.6, 0.2, 0.2, seed=seed)
        assert [len(part) for part in splits] == [120, 40, 40]
        assert len(splits.train.overlap(splits.dev)) == 0
    singles = [f"single {i}" for i in range(100)]
    for part, pairs in zip(data(*texts, *singles).split(0.6, 0.2, 0.2), (60, 20, 20), strict=True):
        assert abs(len(part.duplicates()) - pairs) <= 1
    labelled = data(*texts, *singles, a=list("ab") * 150)
    for part, size in zip(labelled.split(0.6, 0.2, 0.2, stratify="a"), (180, 60, 60), strict=True):
        assert len(part) == size
        assert abs(Counter(example.a for example in part)["a"] - size / 2) < 1


def test_a_group_larger_than_its_part_changes_sizes_but_is_not_cut():
    rows = data(*["the same"] * 14, *(f"other {i}" for i in range(6)))
    splits = rows.split(0.6, 0.2, 0.2)
    assert [len(part) for part in splits] == [14, 3, 3]
    with pytest.raises(DatasetError, match=r"dev=0.2 of 14 rows would be empty.*14 rows share theirs; remove duplicates"):
        data(*["the same"] * 14).split(0.6, 0.2, 0.2)


def test_near_duplicates_stay_together_on_request():
    draw = random.Random(0)
    base = sentences(60, 30)
    rows = data(*base, *(mutated(text, draw) for text in base))
    together = rows.split(0.5, 0.25, 0.25, near=0.8)
    assert together.train.overlap(together.dev, near=True) == []
    assert sum(map(len, together)) == 120
    apart = rows.split(0.5, 0.25, 0.25)
    assert apart.train.overlap(apart.dev, near=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.lists(st.integers(0, 20), min_size=2, max_size=4))
def test_a_rounded_table_keeps_both_sums(row_sums, shares):
    total = sum(row_sums)
    assume(sum(shares) > 0)
    edges = np.rint(np.cumsum([0, *shares]) / sum(shares) * total).astype(int)
    column_sums = np.diff(edges)
    table = np.outer(row_sums, column_sums) / total
    counts = round_table(table, row_sums, column_sums.tolist())
    assert counts.sum(axis=1).tolist() == row_sums
    assert counts.sum(axis=0).tolist() == column_sums.tolist()
    assert (np.abs(counts - table) < 1).all()
