"""`Retrieve` in programs: knobs, batches, threads, reranking, packing, metrics, artifacts."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import still
from hypothesis import given
from hypothesis import strategies as st
from still.backends.retrieval.gather import Gather
from still.backends.retrieval.multihop import merged
from still.backends.retrieval.pack import pack, token_counter
from still.backends.retrieval.rerank import rerank, reranker_of
from still.errors import ArtifactError, MetricError, RetrievalError, SignatureError
from still.signatures.knob import knob_values, named_knobs
from still.signatures.passage import Passage, passages_text

TEXTS = {
    "boil": "The kettle boils a litre of water in three minutes.",
    "lime": "Remove lime from the kettle with vinegar once a month.",
    "hose": "The garden hose is twenty metres long.",
    "wash": "Bottles are washed at sixty degrees.",
}


def vectors(texts):
    """Counts of letters: deterministic, and good enough to tell these texts apart."""
    return [[text.lower().count(letter) + 0.1 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]


@pytest.fixture
def corpus(tmp_path):
    made = still.Corpus(tmp_path / "c.duckdb")
    made.add(still.Document(key, text, f"{key}.md", {"kettle": "kettle" in text}) for key, text in TEXTS.items())
    return made


def by_length(query, texts):
    return [-len(text) for text in texts]


def test_passages_carry_id_text_score_and_source(corpus):
    (found, *_) = still.Retrieve(corpus, None)("lime from a kettle").passages
    ((hit, *_),) = still.Lexical(corpus).search(["lime from a kettle"])
    text = TEXTS["lime"]
    assert found == Passage(
        id="lime", text=text, score=hit.score, source="lime.md", document="lime", start=0, end=len(text)
    )


@pytest.mark.parametrize("method", ["lexical", "dense", "fused"])
def test_alone_in_batches_and_async_the_same_passages_are_found(corpus, method):
    find = still.Retrieve(corpus, vectors, k=2, method=method)
    queries = ["kettle water", "", "long hose", "zzz", "kettle water"]
    batch = find.many(queries)
    assert batch == [find(query).passages for query in queries]
    assert batch == [asyncio.run(find.acall(query)).passages for query in queries]
    assert batch[1] == [] and all(len(found) <= 2 for found in batch)


def test_conditions_come_from_the_program_and_values_from_the_call(corpus):
    find = still.Retrieve(corpus, vectors, where="(metadata->>'kettle') = $kettle", parameters={"kettle": "true"})
    assert {p.id for p in find("garden hose").passages} == {"boil", "lime"}
    assert {p.id for p in find("garden hose", {"kettle": "false"}).passages} == {"hose", "wash"}


def test_a_list_is_a_value_of_a_condition(corpus):
    find = still.Retrieve(corpus, vectors, where="list_contains($keys::VARCHAR[], key)", parameters={"keys": ["boil"]})
    assert [p.id for p in find("garden hose").passages] == ["boil"]
    assert {p.id for p in find("garden hose", {"keys": ["lime", "wash"]}).passages} == {"lime", "wash"}
    assert find("garden hose", {"keys": []}).passages == []
    with pytest.raises(RetrievalError, match=r"parameters: 'keys' is \{'lime'\}"):
        find("garden hose", {"keys": {"lime"}})


def test_threads_share_batches_and_get_their_own_answers(corpus):
    find = still.Retrieve(corpus, vectors, k=3)
    queries = [f"{word} {i % 7}" for i, word in enumerate(["kettle", "hose", "bottles", "water lime"] * 10)]
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda query: find(query).passages, queries))
    assert found == find.many(queries)


def test_gather_runs_together_what_arrives_while_it_runs():
    sizes, release = [], threading.Event()

    def run(items):
        sizes.append(len(items))
        release.wait(5)
        return [item * 2 for item in items]

    gather = Gather(run)
    with ThreadPoolExecutor(8) as threads:
        jobs = [threads.submit(gather, i) for i in range(8)]
        while len(gather._waiting) < 7:
            time.sleep(0.001)
        release.set()
        assert [job.result() for job in jobs] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert sizes == [1, 7]


def test_an_error_reaches_only_the_one_whose_item_it_is_and_the_next_one_runs():
    batches, release = [], threading.Event()

    def run(items):
        batches.append(sorted(items))
        release.wait(5)
        if -1 in items:
            raise ValueError("no")
        return items

    gather = Gather(run)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(gather, 0)
        while not batches:
            time.sleep(0.001)
        jobs = [threads.submit(gather, item) for item in (1, -1, 2)]
        while len(gather._waiting) < 3:
            time.sleep(0.001)
        release.set()
        assert [job.result() for job in (first, jobs[0], jobs[2])] == [0, 1, 2]
        with pytest.raises(ValueError, match="no"):
            jobs[1].result()
    assert batches[:2] == [[0], [-1, 1, 2]] and sorted(batches[2:]) == [[-1], [1], [2]]
    with pytest.raises(ValueError, match="no"):
        gather(-1)
    assert gather(3) == 3 and batches[-2:] == [[-1], [3]]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"k": 0}, SignatureError),
        ({"method": "magic"}, SignatureError),
        ({"size": 3}, RetrievalError),
        ({"rerank_depth": 5}, RetrievalError),
        ({"tune": {"k": (0,)}}, SignatureError),
        ({"tune": {"size": (1,)}}, SignatureError),
        ({"reranker": 3}, RetrievalError),
    ],
)
def test_settings_that_mean_nothing_are_refused(corpus, arguments, error):
    with pytest.raises(error):
        still.Retrieve(corpus, vectors, **arguments)


def test_without_vectors_only_the_lexical_knobs_are_open(corpus):
    find = still.Retrieve(corpus, None, k=3)
    open_knobs = {path for path, _, knob in named_knobs(find) if knob.choices is None or len(knob.choices) > 1}
    assert open_knobs == {"k", "k1", "b"}
    assert knob_values(find) == {"k": 3, "method": "lexical"}
    with pytest.raises(RetrievalError, match="needs vectors"):
        still.Retrieve(corpus, None, method="dense")


def test_reranking_orders_the_first_and_keeps_the_rest_behind_them(corpus):
    passages = [Passage(id=str(i), text="x" * n, score=9 - i) for i, n in enumerate((3, 1, 2, 1))]
    found = rerank(reranker_of(by_length), "q", passages, depth=3)
    assert [p.id for p in found] == ["1", "2", "0", "3"]
    assert [p.score for p in found] == [-1, -2, -3, -3]
    shared = rerank(reranker_of(by_length), "q", passages, depth=3, weight=0.4)
    assert [p.id for p in shared] == ["1", "0", "2", "3"]
    assert [p.score for p in shared] == pytest.approx([0.7, 0.6, 0.2, 0.2])
    find = still.Retrieve(corpus, vectors, k=2, reranker=by_length)
    assert [p.id for p in find("kettle").passages] == ["wash", "hose"]
    find.rerank_depth = 0
    assert "wash" not in [p.id for p in find("kettle").passages]


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], "ab", None])
def test_scores_of_another_kind_are_refused(scores):
    passages = [Passage(id="a", text="a"), Passage(id="b", text="b")]
    with pytest.raises(RetrievalError, match="reranker"):
        rerank(reranker_of(lambda query, texts: scores), "q", passages)


def test_a_cross_encoder_folder_scores_pairs_as_transformers_does(tmp_path):
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "red", "blue", "kettle", "hose"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1,
        max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    texts = ["red kettle", "hose", "blue blue blue hose red red kettle"]
    found = reranker_of(tmp_path).scores("red hose", texts)
    for text, score in zip(texts, found, strict=True):
        pair = tokenizer.encode("red hose", text)
        with torch.inference_mode():
            logits = model(torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.type_ids])).logits
        assert score == pytest.approx(float(logits[0, 0]), abs=0.02)  # bf16 products


texts = st.text("ab .\n", min_size=1, max_size=30).filter(str.strip)


@given(st.lists(texts, max_size=6), st.integers(1, 60))
def test_packing_fits_the_budget_and_keeps_the_order(bodies, budget):
    passages = [Passage(id=str(i), text=text) for i, text in enumerate(bodies)]
    packed = pack(passages, budget, len)
    assert len(passages_text(packed)) <= budget
    ids = [int(passage.id) for passage in packed]
    assert ids == sorted(ids)
    for passage in packed[:-1]:
        assert passage.text == bodies[int(passage.id)]
    if packed:
        assert bodies[ids[-1]].startswith(packed[-1].text)
        if packed[-1].text != bodies[ids[-1]]:
            assert packed[-1].end == len(packed[-1].text)
            assert len(passages_text([*packed[:-1], passages[ids[-1]]])) > budget, "it is cut only where it does not fit"
            return
    unique = list(dict.fromkeys(bodies))
    assert len(packed) == len(unique) or len(passages_text([*packed, passages[bodies.index(unique[len(packed)])]])) > budget


@pytest.mark.parametrize(
    ("text", "budget", "kept"),
    [
        ("One. Two three four five", 16, "One."),
        ("I. Two three four five six", 26, "I. Two three four"),
        ("one two three four", 15, "one two"),
        ("abcdefghijkl", 10, "abcde"),
        ("一二三。四五六七八九", 10, "一二三。"),
        ("一二三四五六七八九", 10, "一二三四五"),
    ],
)
def test_the_only_passage_is_cut_rather_than_left_out(text, budget, kept):
    passage = Passage(id="a", text=text, document="d", start=100, end=100 + len(text))
    assert pack([passage], budget, len) == [passage.model_copy(update={"text": kept, "end": 100 + len(kept)})]


def test_a_later_passage_is_cut_at_a_sentence_or_left_out():
    first = Passage(id="a", text="ab")
    cases = {"一二三。四五六七": "一二三。", "一二三四五六七": None, "one two six": None, "One. Two": "One."}
    for text, kept in cases.items():
        later = Passage(id="b", text=text, start=5, end=5 + len(text))
        cut = [] if kept is None else [later.model_copy(update={"text": kept, "end": 5 + len(kept)})]
        assert pack([first, later], 17, len) == [first, *cut]


def test_tokens_are_the_models(tiny_lm):
    text = "Descale the kettle with vinegar [1]."
    assert token_counter(tiny_lm)(text) == len(tiny_lm.local.prompter.encode(text))
    with pytest.raises(RetrievalError, match="tokens=0"):
        pack([], 0, len)


def test_hops_are_merged_by_turns():
    def named(ids):
        return [Passage(id=i, text=i) for i in ids]

    assert [p.id for p in merged([named("abc"), named("xay"), []])] == ["a", "x", "b", "c", "y"]
    assert merged([]) == []


def test_metrics_read_passages_their_data_and_ids():
    example = still.Example(query="q", relevant=["a", "b"]).with_inputs("query")
    passages = [Passage(id="x", text=""), Passage(id="b", text="")]
    for given_passages in (passages, [p.model_dump() for p in passages], ["x", "b"]):
        prediction = still.Prediction(passages=given_passages)
        assert still.mrr()(example, prediction) == 0.5
        assert still.recall_at(2)(example, prediction) == 0.5
        assert still.recall_at(1)(example, prediction) == 0
    graded = still.Example(query="q", relevant={"x": 2, "b": 0}).with_inputs("query")
    assert still.ndcg_at(10)(graded, still.Prediction(passages=passages)) == 1
    with pytest.raises(MetricError, match="relevant"):
        still.mrr()(still.Example(query="q").with_inputs("query"), still.Prediction(passages=[]))


def test_a_search_is_compiled_and_the_artifact_knows_its_corpus(tmp_path, corpus, tiny_lm):
    from still.optimizers.search import Search

    rows = [{"query": text[:20], "relevant": [key]} for key, text in TEXTS.items()]
    rows += [{"query": text[-20:], "relevant": [key]} for key, text in TEXTS.items()]
    data = still.Dataset(rows, inputs=["query"])
    tune = dict.fromkeys(("k", "k1", "b", "method", "fuse_by", "lexical_weight", "rerank_weight"), ())
    tune["rerank_depth"] = (0, 20)

    def worst_first(query, texts):
        return list(range(len(texts)))

    opposite = still.Retrieve(corpus, vectors, k=2, method="dense", tune=tune, reranker=worst_first)
    result = still.compile(
        opposite, data, data, still.mrr(), passes=[Search()], lm=tiny_lm, ledger=tmp_path / "l.duckdb", progress=False
    )
    assert result.program.rerank_depth == 0
    assert opposite.rerank_depth == 20
    result.save(tmp_path / "found")
    again = still.Retrieve(corpus, vectors, k=2, reranker=opposite.reranker)
    loaded = still.load(tmp_path / "found", program=again, lm=tiny_lm)
    assert loaded.rerank_depth == 0 and knob_values(loaded) == knob_values(result.program)
    corpus.add([still.Document("new", "A new text.")])
    with pytest.raises(ArtifactError, match="its corpus is"):
        still.load(tmp_path / "found", program=again, lm=tiny_lm)
