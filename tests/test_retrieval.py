"Search: by words against a library, by vectors saved and opened elsewhere."
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sftbook.core import ConfigError, DataError
from sftbook.evaluation.reports import Report
from sftbook.settings import TrainingConfig
from sftbook.tasks.keyword_search import KeywordIndex, best_places, search_words
from sftbook.tasks.protocol import fine_tune, predict
from sftbook.tasks.retrieval import (
    Retrieval, embed, help_pairs, mine_negatives, pair_collection, search_vectors, with_negatives)
from sftbook.tasks.saved_runs import load_run, save_run
from sftbook.tasks.two_step_search import best_weights, fuse_ranks, quick_mrr

WORDS = st.lists(st.sampled_from("abcdefgh"), max_size=12)


@given(st.lists(WORDS, min_size=1, max_size=8).filter(any), WORDS)
@settings(max_examples=60, deadline=None)
def test_scores_are_those_of_bm25s(passages, question):
    bm25s = pytest.importorskip("bm25s")
    ours = KeywordIndex(passages)
    known = [word for word in question if word in ours.postings]
    theirs = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    theirs.index(passages, show_progress=False)
    if known:
        assert np.allclose(ours.scores(question), theirs.get_scores(known), atol=1e-5)


@given(st.lists(st.integers(0, 4), max_size=20), st.integers(1, 25))
@settings(max_examples=100, deadline=None)
def test_best_places_are_those_of_a_stable_sort(scores, k):
    scores = np.array(scores, dtype=float)
    assert best_places(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_an_empty_or_endless_question_finds_something_and_breaks_nothing():
    index = KeywordIndex([["a"], ["b"]])
    for question in ("", "…", "b " * 10_000):
        assert np.isfinite(index.scores(search_words(question))).all()
    with pytest.raises(DataError, match="not one word"):
        KeywordIndex([])


@pytest.fixture(scope="module")
def pairs():
    return Dataset.from_dict(dict(
        question=["goal", "profit", "Goal", "oil market"],
        passage=["the striker scored", "shares rose", "a keeper coach", "the oil price fell"]))


@pytest.fixture(scope="module")
def tuned(tiny_checkpoint, pairs):
    task = Retrieval(str(tiny_checkpoint), max_length=16, question_length=8, pooling="mean")
    config = TrainingConfig(num_train_epochs=20, learning_rate=2e-3, per_device_train_batch_size=4)
    return fine_tune(task, pairs, config=config)


def test_training_brings_questions_to_their_passages(tuned, pairs):
    losses = [step["loss"] for step in tuned.result.state.history]
    report = tuned.task.metrics(predict(tuned.task, tuned.model, pairs), pairs)
    assert losses[-1] < losses[0] / 2 and report.metrics["MRR@10"].value > 0.8


def test_vectors_do_not_depend_on_what_else_is_read(tuned, pairs):
    texts = pairs["passage"][:]
    together = embed(tuned.task, tuned.model, texts, "passage")
    for text, vector in zip(texts, together):
        assert np.allclose(embed(tuned.task, tuned.model, [text], "passage")[0], vector, atol=1e-5)


def test_a_run_is_the_same_in_sentence_transformers(tuned, pairs, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    tuned.task.question_prefix = "the "
    save_run(tmp_path / "run", tuned.task, tuned.model, Report("retrieval", 4, {}))
    run, theirs = load_run(tmp_path / "run"), library.SentenceTransformer(
        str(tmp_path / "run"), device="cpu", local_files_only=True)
    tuned.task.question_prefix = ""
    assert run.task.question_prefix == "the "
    questions, passages = pairs["question"][:], pairs["passage"][:]
    assert np.allclose(theirs.encode_query(questions), embed(run.task, run.model, questions),
                       atol=1e-5)
    assert np.allclose(theirs.encode_document(passages),
                       embed(run.task, run.model, passages, "passage"), atol=1e-5)
    with pytest.raises(ConfigError):
        run.predict("a text")


def test_mined_negatives_are_never_right_and_keep_their_distance(tuned, pairs):
    rows = with_negatives(tuned.task, tuned.model, pairs, n=2, share=1.)
    questions, passages, right = pair_collection(pairs)
    for question, negatives in zip(rows["question"], rows["negatives"]):
        known = {passages[i] for i in right[questions.index(question)]}
        assert not known & set(negatives)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 4)), rng.normal(size=(30, 4))
    for row, places in enumerate(mine_negatives(a, b, [[0]] * 20, n=5, share=0.9)):
        assert all(a[row] @ b[i] < 0.9 * (a[row] @ b[0]) for i in places)


def test_batches_with_negatives_have_one_target_a_question(tiny_checkpoint, pairs):
    task = Retrieval(str(tiny_checkpoint), max_length=16, question_length=8)
    rows = pairs.add_column("negatives", [["shares rose"], [], ["oil"], ["a", "goal"]])
    batch = task.collate(task.encode(rows))
    assert batch["target"].tolist() == [0, 2, 3, 5]
    assert batch["known"].shape == (4, 8) and batch["known"][0].tolist()[:4] == [1, 0, 0, 1]


def test_no_passage_of_a_test_page_is_trained_on():
    train, test = help_pairs("en", "train"), help_pairs("en", "test")
    assert not set(train["page"]) & set(test["page"])
    assert not set(train["passage"]) & set(test["passage"])


def test_exact_search_is_a_sort_of_products():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(7, 5)), rng.normal(size=(40, 5))
    places, scores = search_vectors(a, b, 6, block=3)
    assert (places == np.argsort(-(a @ b.T), axis=1)[:, :6]).all()
    assert np.allclose(scores, -np.sort(-(a @ b.T), axis=1)[:, :6])


def test_fusion_of_a_list_with_itself_changes_nothing():
    scores = np.random.default_rng(2).normal(size=(5, 9))
    assert (fuse_ranks([scores, scores]).argmax(1) == scores.argmax(1)).all()
    weights = best_weights(dict(a=scores, b=-scores), [[i] for i in scores.argmax(1)])
    assert quick_mrr(scores - weights["b"] * scores, [[i] for i in scores.argmax(1)]) == 1
