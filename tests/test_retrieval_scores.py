"Scores of retrieval: every order of the tied, scikit-learn, and what must not matter."
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from sftbook.core import ConfigError, DataError
from sftbook.evaluation.metrics import load_metric
from sftbook.evaluation.retrieval import (
    abstention, average_precision, compare_rankers, judge, ndcg_at, pessimistic, precision_at,
    query_scores, recall_at, reciprocal_rank_at, retrieval_report, top_answers)

MEASURES = dict(recall=lambda q, k: recall_at(q, k), precision=lambda q, k: precision_at(q, k),
                MRR=lambda q, k: reciprocal_rank_at(q, k), nDCG=lambda q, k: ndcg_at(q, k),
                MAP=lambda q, k: average_precision(q))

candidate = st.tuples(st.integers(0, 2), st.sampled_from([0, 0, 1, 3]))
queries = st.lists(candidate, min_size=1, max_size=6)
missed = st.lists(st.sampled_from([1, 2]), max_size=2)


def judged_query(rows, not_found=()):
    "A query whose candidates are 0, 1, ...; further right answers were not found."
    scores, gains = zip(*rows)
    relevant = {i: g for i, g in enumerate(gains) if g} | {
        100 + i: g for i, g in enumerate(not_found)}
    return judge(range(len(rows)), relevant, scores)


def by_hand(gains, ideal, k):
    "All scores of one order without ties, straight from their definitions."
    right = [g > 0 for g in gains]
    first = next((i for i, r in enumerate(right[:k], 1) if r), None)
    precisions = [sum(right[:i])/i for i, r in enumerate(right, 1) if r]
    gain = sum(g/math.log2(i + 1) for i, g in enumerate(gains[:k], 1))
    best = sum(g/math.log2(i + 1) for i, g in enumerate(ideal[:k], 1))
    return dict(recall=sum(right[:k])/len(ideal), precision=sum(right[:k])/k,
                MRR=1/first if first else 0., nDCG=gain/best, MAP=sum(precisions)/len(ideal))


@settings(deadline=None, max_examples=150)
@given(queries, missed, st.integers(1, 7))
def test_expected_and_pessimistic_values_are_those_of_all_orders(rows, not_found, k):
    judged = judged_query(rows, not_found)
    assume(len(judged.ideal))
    orders = [list(o) for o in itertools.permutations(range(len(rows)))
              if (np.diff(judged.scores[list(o)]) <= 0).all()]
    found = [by_hand(judged.gains[o].tolist(), judged.ideal.tolist(), k) for o in orders]
    for name, measure in MEASURES.items():
        values = [one[name] for one in found]
        assert measure(judged, k) == pytest.approx(np.mean(values), abs=1e-12), name
        assert measure(pessimistic(judged), k) == pytest.approx(min(values), abs=1e-12), name


@settings(deadline=None, max_examples=150)
@given(queries, st.randoms())
def test_the_order_of_the_file_does_not_matter(rows, random):
    shuffled = random.sample(list(enumerate(rows)), len(rows))
    relevant = {i: gain for i, (_, gain) in enumerate(rows)}
    there = judge(range(len(rows)), relevant, [score for score, _ in rows])
    mixed = judge([i for i, _ in shuffled], relevant, [score for _, (score, _) in shuffled])
    stretched = replace(there, scores=np.exp(there.scores) - 5)
    for measure in MEASURES.values():
        for other in (mixed, stretched):
            assert measure(there, 3) == pytest.approx(measure(other, 3), abs=1e-12, nan_ok=True)
        worst = measure(pessimistic(there), 3)
        assert worst == pytest.approx(measure(pessimistic(mixed), 3), abs=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=150)
@given(st.lists(candidate, min_size=2, max_size=12), st.integers(1, 13))
def test_ndcg_is_that_of_scikit_learn_ties_too(rows, k):
    judged = judged_query(rows)
    assume(len(judged.ideal))
    scores, gains = zip(*rows)
    assert ndcg_at(judged, k) == pytest.approx(ndcg_score([gains], [scores], k=k), abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(0, 9))
def test_average_precision_is_that_of_scikit_learn_without_ties(right, seed):
    assume(any(right))
    scores = np.random.default_rng(seed).permutation(len(right))
    judged = judge(range(len(right)), [i for i, r in enumerate(right) if r], scores)
    assert average_precision(judged) == pytest.approx(average_precision_score(right, scores))


@settings(deadline=None, max_examples=100)
@given(queries, missed)
def test_more_places_never_lower_recall_and_mrr(rows, not_found):
    judged = judged_query(rows, not_found)
    assume(len(judged.ideal))
    for measure in (recall_at, reciprocal_rank_at):
        values = [measure(judged, k) for k in range(1, 8)]
        assert (np.diff(values) >= -1e-12).all() and 0 <= min(values) <= max(values) <= 1 + 1e-12


def test_a_query_without_candidates():
    nothing, unanswerable = judge([], "a"), judge([], [])
    for measure in MEASURES.values():
        assert measure(nothing, 5) == 0 and np.isnan(measure(unanswerable, 5))
    right, best = top_answers([nothing, judge("ab", "a", [-3., -4.])])
    assert right.tolist() == [0, 1] and best.tolist() == [-3, -3]
    gaps = top_answers([nothing, judge("a", "a"), judge("ab", "a", [3., 1.])], "gap")[1]
    assert gaps.tolist() == [0, 0, 2]
    assert abstention([nothing], -9).rates["answered"] == (0, 1)
    assert top_answers([])[0].shape == (0,)
    report = retrieval_report([nothing, *[judge("ab", "a")]*9])
    assert report.not_found == 1 and report.metrics["MRR@10"].value == pytest.approx(0.9)


def test_queries_without_a_right_answer_are_counted_and_change_nothing_else():
    with_answer = [judge("abc", right) for right in "abcabcab"]
    both = [*with_answer, judge("abc", ""), judge("abc", {})]
    pages = [0, 0, 1, 1, 2, 3, 4, 5]
    alone = retrieval_report(with_answer, clusters=pages)
    more = retrieval_report(both, clusters=[*pages, 9, 9])
    assert alone.metrics == more.metrics and (alone.without_answer, more.without_answer) == (0, 2)
    assert "without 2" in str(more)


def test_mistakes_in_calling_are_refused():
    with pytest.raises(ConfigError):
        query_scores([judge("a", "a")], k=0)
    with pytest.raises(ConfigError, match="guess"):
        top_answers([], "guess")
    with pytest.raises(DataError, match="no query"):
        query_scores([])
    with pytest.raises(DataError, match="clusters"):
        retrieval_report([judge("a", "a")], clusters=[1, 2])
    with pytest.raises(DataError, match="same queries"):
        compare_rankers([judge("ab", "a")], [judge("ab", "a"), judge("ab", "b")])


def test_two_rankers_the_other_way_round():
    rng = np.random.default_rng(0)
    a, b = ([judge(range(9), [0, 5], rng.random(9)) for _ in range(30)] for _ in range(2))
    there, back = compare_rankers(a, b, k=3), compare_rankers(b, a, k=3)
    for name in there:
        assert there[name].difference.value == pytest.approx(-back[name].difference.value)
        assert there[name].difference.low == pytest.approx(-back[name].difference.high)
    assert compare_rankers(a, a, k=3)["MRR@3"].p_value == 1


def test_metrics_are_known_by_name():
    rankings, right = [[4, 2, 9], [7, 1], [3]], [[2], [1, 7], []]
    expected = dict(mrr=0.75, recall=1., map=0.75, ndcg=(1/math.log2(3) + 1)/2)
    for name, value in expected.items():
        found = load_metric(f"retrieval_{name}").compute(predictions=rankings, references=right)
        assert found == {f"retrieval_{name}": pytest.approx(value)}
    at_1 = load_metric("retrieval_mrr").compute(predictions=rankings, references=right, k=1)
    assert at_1["retrieval_mrr"] == 0.5
