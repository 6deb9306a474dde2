"Paths of tags and whole spans, against brute force and as tasks of the protocol."
import itertools
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sftbook.core import CheckpointError, ConfigError
from sftbook.evaluation.entities import entity_spans
from sftbook.folders import write_manifest
from sftbook.model import output_layer
from sftbook.schemes import to_iob2
from sftbook.tasks.protocol import fine_tune, predict
from sftbook.tasks.saved_runs import load_run, save_run
from sftbook.tasks.span_tagging import SpanTagging, pick_spans
from sftbook.tasks.structured_tagging import (
    ConstrainedTagging, CRFTagging, best_tags, by_the_rules, legal_tags, log_sum, path_worth,
    rules, scored_entities, tag_shares)
from sftbook.tasks.token_classification import TokenClassification
from sftbook.trainer import TrainingConfig

LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG"]
TOKENS = [["the", "bank", "rose"], ["the", "team", "scored", "a", "goal"], ["keeper", "won"],
          ["the", "final", "quarter", "fell", "oil", "cup"]]
TAGS = [["O", "B-ORG", "O"], ["O", "B-ORG", "I-ORG", "O", "O"], ["B-PER", "O"],
        ["O", "B-PER", "I-PER", "I-PER", "O", "B-ORG"]]
KINDS = {"rules": (ConstrainedTagging, {}), "crf": (CRFTagging, {}),
         "spans": (SpanTagging, {"longest": 3})}
TRAINING = TrainingConfig(learning_rate=1e-2, num_train_epochs=30, per_device_train_batch_size=4,
                          bf16=False)


def rows(times=1):
    return Dataset.from_dict({"tokens": TOKENS * times, "ner_tags": TAGS * times})


def made(name, checkpoint, **more):
    kind, own = KINDS[name]
    return kind(LABELS, checkpoint=str(checkpoint), max_length=16, **own, **more)


@pytest.fixture(scope="module")
def tuned(tiny_checkpoint):
    return {name: fine_tune(made(name, tiny_checkpoint), rows(), config=TRAINING)
            for name in KINDS}


# --- the recursions


def every_path(scores, chain):
    "Paths of one sentence with what each is worth, added up term by term."
    start, steps, end = (part.tolist() for part in chain)
    values = {}
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        worth = start[path[0]] + end[path[-1]]
        worth += sum(steps[a][b] for a, b in itertools.pairwise(path))
        values[path] = worth + sum(scores[t, tag].item() for t, tag in enumerate(path))
    return values


@given(st.integers(0, 10_000), st.lists(st.integers(1, 4), min_size=1, max_size=3),
       st.integers(1, 4), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_batch_of_any_lengths_is_what_listing_all_paths_says(seed, lengths, tags, by_rules):
    draw = torch.Generator().manual_seed(seed)
    def random(*shape):
        return torch.randn(*shape, generator=draw).double()

    labels = ["O", "B-X", "I-X", "B-Y"][:tags]
    chain = tuple(part.double() for part in rules(labels)) if by_rules else (
        random(tags), random(tags, tags), random(tags))
    scores = random(len(lengths), max(lengths), tags)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    best, total = best_tags(scores, mask, chain), log_sum(scores, mask, chain)
    shares = tag_shares(scores, mask, chain)
    for row, n in enumerate(lengths):
        values = every_path(scores[row, :n], chain)
        assert tuple(best[row, :n].tolist()) == max(values, key=values.get)
        expected = torch.tensor(list(values.values())).double().logsumexp(0)
        assert total[row].item() == pytest.approx(expected.item())
        path = best[None, row].clone()
        found = path_worth(scores[None, row], path, mask[None, row], chain).item()
        assert found == pytest.approx(max(values.values()))
        first = sum(np.exp(v - expected.item()) for p, v in values.items() if p[0] == 0)
        assert shares[row, 0, 0].item() == pytest.approx(first)


def test_transitions_read_from_column_to_row_would_be_noticed():
    torch.manual_seed(0)
    scores, steps = torch.randn(1, 4, 3), torch.randn(3, 3)
    chain, turned = ((torch.zeros(3), table, torch.zeros(3)) for table in (steps, steps.T))
    mask = torch.ones(1, 4).bool()
    assert abs(log_sum(scores, mask, chain) - log_sum(scores, mask, turned)) > 1e-3


@given(st.lists(st.sampled_from(range(5)), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_the_rules_leave_a_legal_answer_as_it_is_and_repair_any_other(ids):
    scores = torch.nn.functional.one_hot(torch.tensor([ids]), 5).float()
    mask = torch.ones(1, len(ids)).bool()
    found = [LABELS[i] for i in best_tags(scores, mask, rules(LABELS))[0].tolist()]
    said = [LABELS[i] for i in ids]
    assert to_iob2(found) == found
    if to_iob2(said) == said:
        assert found == said


def test_parts_of_speech_may_follow_each_other_as_they_like():
    first, follows = legal_tags(["NOUN", "VERB", "O"])
    assert first.all() and follows.all()


# --- as tasks


@pytest.mark.parametrize("name", KINDS)
def test_what_was_learnt_is_answered_and_opens_again(name, tuned, tmp_path):
    run = tuned[name]
    answers = predict(run.task, run.model, rows())
    assert answers == TAGS
    report = run.task.metrics(answers, rows())
    folder = save_run(tmp_path / "run", run.task, run.model, report)
    opened = load_run(folder)
    assert opened.predict(TOKENS) == TAGS and opened.task == type(run.task)(
        **{**vars_of(run.task), "checkpoint": str(folder)})
    again = save_run(tmp_path / "again", opened.task, opened.model, report)
    for file in ("model.safetensors", "structure.safetensors"):
        if (folder / file).exists():
            assert (folder / file).read_bytes() == (again / file).read_bytes()


def vars_of(task):
    from dataclasses import fields

    return {f.name: getattr(task, f.name) for f in fields(task)}


@pytest.mark.parametrize("name", ["crf", "spans"])
def test_plain_transformers_opens_body_and_scores_of_tags(name, tuned, tmp_path):
    from transformers import AutoModelForTokenClassification

    run = tuned[name]
    report = run.task.metrics(TAGS, rows())
    folder = save_run(tmp_path / "run", run.task, run.model, report)
    plain, said = AutoModelForTokenClassification.from_pretrained(folder, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    batch = run.task.collate(run.task.encode(rows()))
    read = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(plain(**read).logits, run.model(**read,
                                   output_hidden_states=True).logits)
    assert "structure.safetensors" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["crf", "spans"])
def test_missing_or_strange_weights_beside_the_model_are_said(name, tuned, tmp_path):
    run = tuned[name]
    folder = save_run(tmp_path / "run", run.task, run.model, run.task.metrics(TAGS, rows()))
    other = tuned["spans" if name == "crf" else "crf"]
    strange = save_run(tmp_path / "strange", other.task, other.model,
                       run.task.metrics(TAGS, rows()))
    (folder / "structure.safetensors").write_bytes(
        (strange / "structure.safetensors").read_bytes())
    (folder / "MANIFEST.json").unlink()
    write_manifest(folder)
    with pytest.raises(CheckpointError, match="no weights beside the model"):
        load_run(folder)


@pytest.mark.parametrize("name", ["crf", "spans"])
def test_several_processes_may_take_the_outputs_apart_and_put_them_together(name, tuned):
    "As `DistributedDataParallel` does where weights without a gradient are expected."
    from torch.utils._pytree import tree_flatten, tree_unflatten

    run = tuned[name]
    batch = run.task.collate(run.task.encode(rows()))
    read = {key: batch[key] for key in ("input_ids", "attention_mask")}
    output = run.model(**read, output_hidden_states=True)
    leaves, spec = tree_flatten(output)
    weights = list(run.model.structure.parameters())
    gradients = torch.autograd.grad(sum(leaf.sum() for leaf in leaves), weights)
    again = tree_unflatten(leaves, spec)
    assert len(gradients) == len(weights) == 3
    assert all(map(torch.equal, output.structure, again.structure))


@pytest.mark.parametrize("name", KINDS)
def test_four_passes_of_four_rows_are_one_of_sixteen(name, tiny_checkpoint):
    task = made(name, tiny_checkpoint)
    torch.manual_seed(0)
    start = task.init_model()
    for module in start.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    weights = {k: v.clone() for k, v in start.state_dict().items()}

    def trained(**passes):
        start.load_state_dict(weights)
        config = TrainingConfig(learning_rate=1e-3, num_train_epochs=1, bf16=False, **passes)
        history = fine_tune(task, rows(16), config=config, model=start).result.state.history
        return [(step["loss"], step["grad_norm"]) for step in history]

    at_once = trained(per_device_train_batch_size=16)
    in_parts = trained(per_device_train_batch_size=4, gradient_accumulation_steps=4)
    np.testing.assert_allclose(at_once, in_parts, rtol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_padding_changes_neither_loss_nor_answer(name, tuned):
    run = tuned[name]
    def costs(some):
        total, n = run.task.loss(run.model, run.task.collate(run.task.encode(some)))
        return np.array([total.item(), n])

    alone = sum(costs(rows().select([i])) for i in range(4))
    np.testing.assert_allclose(costs(rows()), alone, rtol=1e-4)
    for i in range(4):
        assert predict(run.task, run.model, rows().select([i])) == [TAGS[i]]


@pytest.mark.parametrize("name", KINDS)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(name, tiny_checkpoint, tmp_path):
    task = made(name, tiny_checkpoint)
    config = TrainingConfig(learning_rate=1e-3, num_train_epochs=2, bf16=False,
                            per_device_train_batch_size=4)
    whole = fine_tune(task, rows(4), config=config, checkpoints=tmp_path / "a")
    steps = sorted((tmp_path / "a").glob("step-*"))
    import shutil

    shutil.rmtree(steps[-1])
    again = fine_tune(task, rows(4), config=config, checkpoints=tmp_path / "a", resume=True)
    assert any("resumed" in message for message in again.result.messages)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key


@pytest.mark.parametrize("name", KINDS)
def test_corrections_of_low_rank_beside_the_body_leave_the_part_to_learn(name, tiny_checkpoint):
    task = made(name, tiny_checkpoint)
    config = TrainingConfig(learning_rate=1e-2, num_train_epochs=2, bf16=False)
    torch.manual_seed(0)
    before = [p.clone() for p in getattr(task.init_model(), "structure", torch.nn.Module())
              .parameters()]
    run = fine_tune(task, rows(4), config=config, trained="lora")
    after = list(getattr(run.model, "structure", torch.nn.Module()).parameters())
    assert len(before) == len(after)
    assert all(not torch.equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize("name", ["rules", "crf", "spans"])
def test_a_sentence_cut_within_an_entity_is_learnt_from_and_answered(name, tiny_checkpoint):
    kind, own = KINDS[name]
    task = kind(LABELS, checkpoint=str(tiny_checkpoint), max_length=5, **own)  # three words
    cut = Dataset.from_dict({"tokens": [["the", "team", "bank", "cup", "fell"]],
                             "ner_tags": [["O", "B-ORG", "I-ORG", "I-ORG", "O"]]})
    model = task.init_model()
    total, _ = task.loss(model, task.collate(task.encode(cut)))
    assert total.item() < 1000  # a path that may not be would cost ten thousand
    [tags] = predict(task, model, cut)
    assert len(tags) == 5 and to_iob2(tags) == tags


@pytest.mark.parametrize("name", ["rules", "crf", "spans"])
def test_words_without_a_piece_and_empty_sentences_get_their_answer(name, tuned):
    run = tuned[name]
    odd = Dataset.from_dict({"tokens": [["the", " ", "bank"], [], [" "]]})
    answers = predict(run.task, run.model, odd)
    assert [len(tags) for tags in answers] == [3, 0, 1]
    assert answers[0][1] == "O" == answers[2][0]
    assert predict(run.task, run.model, odd.select([1])) == [[]]


def test_a_class_without_training_rows_is_silenced_in_the_layer_of_tags(tiny_checkpoint):
    for name in ("crf", "spans"):
        kind, own = KINDS[name]
        task = kind([*LABELS, "B-LOC", "I-LOC"], checkpoint=str(tiny_checkpoint), max_length=16,
                    **own)
        assert output_layer(task.init_model()).out_features == 7
        once = TrainingConfig(num_train_epochs=1, learning_rate=1e-4, bf16=False)
        run = fine_tune(task, rows(), config=once)
        assert any("B-LOC" in message for message in run.result.messages)


def test_losses_over_single_tags_are_refused_where_there_are_none(tiny_checkpoint):
    for name in ("crf", "spans"):
        for own in ({"label_smoothing": 0.1}, {"class_weights": [1.0] * 5}):
            with pytest.raises(ConfigError, match="leave them out"):
                made(name, tiny_checkpoint, **own)


def test_a_trained_softmax_answers_by_the_rules_with_its_own_settings(tiny_checkpoint):
    plain = TokenClassification(LABELS, checkpoint=str(tiny_checkpoint), max_length=16,
                                label_smoothing=0.1)
    task = by_the_rules(plain)
    assert isinstance(task, ConstrainedTagging) and vars_of(task) == vars_of(plain)
    model = plain.init_model()
    for said, found in zip(predict(plain, model, rows()), predict(task, model, rows())):
        assert to_iob2(found) == found and (to_iob2(said) != said or found == said)


# --- entities


@pytest.mark.parametrize("name", KINDS)
def test_scored_entities_are_those_of_the_tags(name, tuned):
    run = tuned[name]
    outputs = run.task.infer(run.model, run.task.collate(run.task.encode(rows())))
    for found, tags in zip(scored_entities(run.task, outputs), TAGS):
        assert {span[:3] for span in found} == entity_spans(tags)
        assert all(0 <= span[3] <= 1 for span in found) and found == sorted(found)


SPANS = st.builds(lambda a, n, p: (a, a + n, "X", p), st.integers(0, 9), st.integers(1, 4),
                  st.floats(0, 1))


@given(st.lists(SPANS, max_size=12))
@settings(max_examples=100, deadline=None)
def test_picked_spans_never_overlap_and_what_is_left_out_was_in_the_way(spans):
    kept = pick_spans(spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(kept))
    for span in spans:
        assert any(k[3] >= span[3] and k[0] < span[1] and span[0] < k[1] for k in kept)


def test_the_longest_entity_of_the_rows_is_the_longest_span(tiny_checkpoint):
    task = SpanTagging.from_rows(rows(), checkpoint=str(tiny_checkpoint), max_length=16)
    assert task.longest == 3 and task.encode(rows()) and task.truncated == 0
    short = SpanTagging.from_rows(rows(), longest=2, checkpoint=str(tiny_checkpoint), max_length=16)
    short.encode(rows())
    assert short.longest == 2 and short.truncated == 1
    saved = json.loads(json.dumps(vars_of(short)))
    assert saved["longest"] == 2


def test_running_sums_of_half_precision_do_not_lose_the_later_words():
    from sftbook.tasks.span_tagging import _inner_means

    means = _inner_means(torch.full((1, 250, 1), 1.5).bfloat16(), 3)
    torch.testing.assert_close(means[0, :248], torch.full((248, 3, 1), 1.5))
