"""Error analysis and decisions where prose has no place for it: random inputs, edges, sizes."""
import math
import time
import unicodedata
from itertools import permutations

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import fisher_exact

from sftbook.core import ConfigError, DataError
from sftbook.evaluation import behaviour, decisions, entities, errors, learning_curves
from sftbook.evaluation.uncertainty import wilson_interval

TAGS = np.array(["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"])


def drawn_tags(rng, length):
    return TAGS[rng.integers(len(TAGS), size=length)].tolist()


# ---- entities

def test_each_entity_is_in_exactly_one_pair():
    rng = np.random.default_rng(0)
    for _ in range(400):
        length = rng.integers(0, 12)
        gold, answer = drawn_tags(rng, length), drawn_tags(rng, length)
        pairs = entities.pair_entities(gold, answer)
        assert sorted(g for g, _ in pairs if g) == sorted(entities.entity_spans(gold))
        assert sorted(p for _, p in pairs if p) == sorted(entities.entity_spans(answer))
        assert all(entities._overlap(g, p) > 0 for g, p in pairs if g and p)


def test_what_is_the_same_is_always_paired_with_itself():
    rng = np.random.default_rng(1)
    for _ in range(400):
        gold, answer = drawn_tags(rng, 10), drawn_tags(rng, 10)
        both = entities.entity_spans(gold) & entities.entity_spans(answer)
        pairs = set(entities.pair_entities(gold, answer))
        assert {(span, span) for span in both} <= pairs


def test_no_pair_that_was_left_shares_more_than_one_that_was_taken():
    "Greedy: of two spans that overlap and are not a pair, one has a partner that shares as much."
    rng = np.random.default_rng(2)
    for _ in range(300):
        gold, answer = drawn_tags(rng, 12), drawn_tags(rng, 12)
        pairs = entities.pair_entities(gold, answer)
        shared = {span: entities._overlap(g, p) for g, p in pairs if g and p
                  for span in (("gold", g), ("answer", p))}
        for g in entities.entity_spans(gold):
            for p in entities.entity_spans(answer):
                best = max(shared.get(("gold", g), 0), shared.get(("answer", p), 0))
                assert entities._overlap(g, p) <= best


def test_a_table_of_entities_adds_up_and_survives_markdown():
    rng = np.random.default_rng(3)
    gold, answer = ([drawn_tags(rng, 8) for _ in range(40)] for _ in range(2))
    found = entities.entity_errors(gold, answer)
    counts = entities.entity_counts(gold, answer).sum(0)
    assert (found.counts["right"], found.gold, found.predicted) == tuple(counts)
    assert sum(i.value for i in found.shares.values()) == pytest.approx(1)
    assert found._repr_markdown_().count("\n| ") == 7
    with pytest.raises(DataError, match="1 references and 2"):
        entities.entity_errors(gold[:1], answer[:2])


def test_familiarity_looks_at_form_and_type():
    known = entities.known_entities([["A", "b"]], [["B-PER", "I-PER"]])
    tokens, tags = [["A", "b", "A"]], [["B-LOC", "I-LOC", "B-PER"]]
    counts = entities.entity_familiarity(tokens, tags, tags, known)
    assert counts.tolist() == [[[0, 0], [1, 1], [1, 1]]]  # "A b" as another type; "A" never
    with pytest.raises(ValueError):
        entities.known_entities([["a"]], [])


# ---- slices

def test_a_slice_of_rates_is_fishers_test_and_newcombes_interval():
    values = np.array([1]*7 + [0]*33 + [1]*30 + [0]*30, dtype=float)
    rows = np.arange(100) < 40
    found = errors.slice_report(values, {"x": rows}).slices[0]
    assert found["p_value"] == pytest.approx(fisher_exact([[7, 33], [30, 30]])[1])
    inside, outside = wilson_interval(7, 40), wilson_interval(30, 60)
    low = math.hypot(inside.value - inside.low, outside.high - outside.value)
    assert found["difference"].low == pytest.approx(inside.value - outside.value - low)


def test_published_figures_of_newcombe():
    "56 of 70 against 48 of 80, method 10 of the paper: 0.0524 to 0.3339."
    values = np.array([1]*56 + [0]*14 + [1]*48 + [0]*32, dtype=float)
    sides = errors._sides(values, np.arange(150) < 70, None)
    found = errors._rate_difference(sides, False, 0.95)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)


def test_holm_is_the_closed_bonferroni_test():
    "Adjusted p: the largest Bonferroni p of all families of hypotheses that hold the one tested."
    rng = np.random.default_rng(0)
    for m in (1, 2, 3, 5):
        p = rng.random(m)**2
        expected = []
        for i in range(m):
            families = [[j for j in range(m) if mask >> j & 1] for mask in range(1, 2**m)]
            own = [f for f in families if i in f]
            expected.append(max(min(1, len(f)*p[f].min()) for f in own))
        assert errors.holm(p) == pytest.approx(expected)
    for order in permutations(range(4)):
        p = np.array([0.01, 0.02, 0.02, 0.9])
        assert errors.holm(p[list(order)]) == pytest.approx(errors.holm(p)[list(order)])


def test_a_tiny_slice_does_not_cost_the_others_anything():
    rng = np.random.default_rng(0)
    values = (rng.random(300) < 0.8).astype(float)
    slices = {"large": np.arange(300) < 100}
    alone = errors.slice_report(values, slices).slices[0]["adjusted"]
    tiny = {f"tiny {i}": np.arange(300) == i for i in range(50)}
    again = errors.slice_report(values, slices | tiny)
    assert next(s for s in again.slices if s["name"] == "large")["adjusted"] == alone
    assert sum(s["adjusted"] is None for s in again.slices) == 50


@pytest.mark.parametrize("values", [np.ones(80), np.zeros(80), np.full(80, 2.5)])
def test_slices_of_rows_that_are_all_alike_are_no_findings(values):
    found = errors.slice_report(values, {"x": np.arange(80) < 40}, clusters=np.arange(80)//4)
    assert not found.found() and str(found) and found._repr_markdown_()


def test_rows_of_one_group_prove_nothing():
    values, rows = np.array([1.]*40 + [0.]*40), np.arange(80) < 40
    found = errors.slice_report(values, {"x": rows}, clusters=np.repeat([0, 1], 40))
    assert not found.found()


def test_nearest_rows_are_those_of_plain_cosines():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 7)), rng.normal(size=(41, 7))
    unit = a/np.linalg.norm(a, axis=1)[:, None], b/np.linalg.norm(b, axis=1)[:, None]
    cosines = unit[0] @ unit[1].T
    for first, second in ((a, b), (sparse.csr_matrix(a), sparse.csr_matrix(b))):
        rows, close = errors.nearest_rows(first, second, k=3)
        assert (rows == np.argsort(-cosines, 1)[:, :3]).all()
        assert close == pytest.approx(-np.sort(-cosines, 1)[:, :3])
    assert errors.nearest_rows(a, b[:2], k=9)[0].shape == (300, 2)


# ---- decisions

def test_bayes_decisions_are_the_cheapest_of_all():
    rng = np.random.default_rng(0)
    p, costs = rng.dirichlet(np.ones(3), 200), rng.random((3, 5))
    expected = (p[:, :, None]*costs[None]).sum(1)
    assert (decisions.bayes_decisions(p, costs) == expected.argmin(1)).all()


def test_the_cost_of_zero_one_costs_is_the_error_rate():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 100), rng.integers(0, 3, 100)
    paid = decisions.decision_costs(y, p, 1 - np.eye(3))
    assert paid.mean() == (y != p).mean()
    assert decisions.mean_cost(paid*0, 1).high == pytest.approx(wilson_interval(0, 100).high)


def test_groups_of_costs_are_worth_less_than_their_rows():
    rng = np.random.default_rng(0)
    paid = np.repeat(rng.choice([0., 1.], 40, p=[0.8, 0.2]), 5)
    alone = decisions.mean_cost(paid, 1)
    grouped = decisions.mean_cost(paid, 1, clusters=np.repeat(np.arange(40), 5))
    assert grouped.high - grouped.low > 1.8*(alone.high - alone.low)


def test_grouped_costs_hold():
    held = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        paid = np.repeat(rng.choice([0., 1., 5.], 60, p=[0.7, 0.2, 0.1]), 4)
        i = decisions.mean_cost(paid, 5, clusters=np.repeat(np.arange(60), 4))
        held.append(i.low <= 0.7 <= i.high)
    assert np.mean(held) > 0.93


def test_a_promise_with_equal_confidences():
    "Few values of confidence: the promise must hold where a cut falls between equal rows, too."
    broken = 0
    for seed in range(800):
        rng = np.random.default_rng(seed)
        level = rng.integers(3, size=400)
        confidence, chance = np.array([0.6, 0.8, 0.9])[level], np.array([0.5, 0.79, 0.93])[level]
        found = decisions.promised_threshold(rng.random(400) < chance, confidence, 0.8)
        if found.threshold is not None:  # above 0.6 the truth is 0.86, above -inf 0.74
            broken += found.threshold < 0.6
    assert broken/800 < 0.05


@pytest.mark.parametrize("n", [1, 2, 10])
def test_a_promise_from_next_to_no_rows_is_not_given(n):
    assert decisions.promised_threshold(np.ones(n), np.linspace(0, 1, n), 0.9).threshold is None


def test_the_area_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    right, sure = (rng.random(200) < 0.7).astype(float), rng.integers(0, 9, 200)/9
    order = rng.permutation(200)
    assert decisions.risk_area(right, sure) == decisions.risk_area(right[order], sure[order])


# ---- learning curves

def test_the_law_is_found_again_over_a_range_of_laws():
    n = np.array([50, 100, 200, 400, 800, 1600.])
    for a in (0., 0.05, 0.3):
        for c in (0.2, 0.5, 1.):
            made = a + 3*n**-c
            found = learning_curves._fit_law(n, made[None], 1/made**2)[0]
            assert learning_curves._law(found, n) == pytest.approx(made, rel=2e-3)


def test_more_rows_are_never_fewer_than_none_and_grow_with_what_is_asked():
    rng = np.random.default_rng(0)
    drawn = {n: 0.1 + 2*n**-0.5 + 0.01*rng.normal(size=4) for n in (100, 200, 400, 800, 1600)}
    curve = learning_curves.fit_learning_curve(drawn, resamples=200)
    asked = [curve.more_rows(points) for points in (0.001, 0.005, 0.02, 0.5)]
    assert all(0 <= one.low <= one.high for one in asked)
    assert [one.value for one in asked] == sorted(one.value for one in asked)
    assert "never" in str(asked[-1])


def test_a_curve_that_does_not_fall_promises_nothing():
    rng = np.random.default_rng(0)
    flat = {n: 0.3 + 0.01*rng.normal(size=5) for n in (100, 200, 400, 800)}
    assert learning_curves.fit_learning_curve(flat, resamples=200).more_rows(0.05).high == math.inf


@pytest.mark.parametrize("bad", [{}, {1: [0.1, 0.2]}, {n: [0.1, math.nan] for n in range(1, 6)},
                                 {n: [0.1, 0.2] for n in range(5)}])
def test_curves_that_cannot_be_fitted_are_refused(bad):
    with pytest.raises(DataError):
        learning_curves.fit_learning_curve(bad)


# ---- behaviour

CHANGES = [behaviour.add_typo, behaviour.change_case, behaviour.change_width,
           behaviour.change_spaces, behaviour.add_sentence, behaviour.negate]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_changes_take_any_text_and_repeat_themselves(change):
    rng = np.random.default_rng(0)
    alphabet = list("ab C.,!？。好很不错 \n\t１Ａß\u0301\u200b\U0001f600")
    for length in range(40):
        text = "".join(rng.choice(alphabet, length))
        first, second = (change(text, np.random.default_rng(7)) for _ in range(2))
        assert isinstance(first, str) and first == second


def test_width_and_space_are_undone_by_folding():
    for text in ("Room 3, ok!", "3 rooms (2 beds)"):
        assert unicodedata.normalize("NFKC", behaviour.change_width(text)) == text
    text = "a b  c"
    assert behaviour.change_spaces(text, np.random.default_rng(0)).split() == text.split()


def test_a_direction_may_fail_and_an_invariance_may_pass():
    def blind(texts):
        return np.tile([0.2, 0.8], (len(texts), 1))

    asked = [behaviour.Behaviour("n", behaviour.negate, "falls"), *behaviour.INVARIANCES]
    first, *others = behaviour.behaviour_report(blind, ["很好", "it is good"], asked).tests
    assert first["rate"].value == 1 and all(not t["failures"] for t in others)


def test_a_report_of_behaviour_is_the_same_in_any_order_of_tests():
    def model(texts):
        p = np.array([(len(t) % 7)/7 for t in texts])
        return np.stack([p, 1 - p], 1)

    texts = [f"this is text number {i}" for i in range(60)]
    one = behaviour.behaviour_report(model, texts).tests
    two = behaviour.behaviour_report(model, texts, behaviour.INVARIANCES[::-1]).tests
    assert one == two[::-1]
    assert one != behaviour.behaviour_report(model, texts, seed=1).tests
    with pytest.raises(ConfigError):
        behaviour.Behaviour("x", str.upper, "rises")


def test_a_hundred_thousand_rows_take_seconds():
    rng, start = np.random.default_rng(0), time.perf_counter()
    right, sure = (rng.random(100_000) < 0.8).astype(float), rng.random(100_000)
    errors.slice_report(right, {str(i): rng.random(100_000) < 0.2 for i in range(10)})
    decisions.promised_threshold(right, sure, 0.75)
    decisions.choose_threshold(right.astype(int), sure, [[0, 1], [5, 0]])
    assert time.perf_counter() - start < 20
