"The measured choice of number format and kernel, and word vectors in use, as behaviour."
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import forked
import pytest
import torch
from torch import nn

from sftbook import autotune, trainer
from sftbook.autotune import Choice, fastest, speed_table
from sftbook.borrowing import faster
from sftbook.compact import CompactEmbedding, compact_word_vectors
from sftbook.core import TrainingError
from sftbook.model import init_classifier
from sftbook.preprocessing.encoding import pad_batch
from sftbook.trainer import Trainer, TrainingConfig

MEASURE = """
import json, sys
from sftbook.autotune import speed_table
from sftbook.model import init_classifier
print(json.dumps(speed_table(init_classifier(sys.argv[1], ["no", "yes"], "cls"))))
"""


def test_processes_that_start_together_read_one_measurement(tiny_checkpoint, tmp_path):
    def measured(_):
        done = forked.code(MEASURE, tiny_checkpoint, environment={"SFTBOOK_CACHE": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with ThreadPoolExecutor(3) as threads:
        tables = list(threads.map(measured, range(3)))
    assert tables[0] and tables[0] == tables[1] == tables[2]
    assert len(list((tmp_path / "speed").glob("*.json"))) == 1


def bert(checkpoint):
    torch.manual_seed(0)
    return init_classifier(str(checkpoint), ["no", "yes"], "cls")


def rows(n=48):
    return [dict(input_ids=[2, 5 + i % 7, 5 + i % 3, 3][:2 + i % 3], labels=i % 2)
            for i in range(n)]


def loss(model, batch):
    labels = batch.pop("labels")
    logits = model(**batch).logits
    return nn.functional.cross_entropy(logits, labels, reduction="sum"), len(labels)


def collate(features):
    return pad_batch(features, {"input_ids": 0})


USUAL = TrainingConfig(learning_rate=1e-3, num_train_epochs=2, per_device_train_batch_size=8)


def watching(seen):
    "A loss that notes the kernel of each pass."
    def watched(model, batch):
        seen.append(model.config._attn_implementation)
        return loss(model, batch)
    return watched


def test_a_run_takes_the_kernel_of_its_lengths_and_gives_the_old_one_back(
        tiny_checkpoint, monkeypatch):
    model, seen = bert(tiny_checkpoint), []
    kernels = ("eager", "sdpa", "sdpa")
    monkeypatch.setattr(trainer, "fastest", lambda *_, **__: Choice("float32", kernels))
    long = [dict(input_ids=[5] * 50, labels=0) for _ in range(8)]
    Trainer(model, watching(seen), collate, USUAL).fit(rows() + long)
    assert set(seen) == {"eager", "sdpa"} and seen.count("sdpa") == 2
    assert model.config._attn_implementation == "sdpa"


def test_a_resumed_run_keeps_its_kernels(tiny_checkpoint, tmp_path, monkeypatch):
    chosen = Choice("float32", ("eager",) * 3)
    monkeypatch.setattr(trainer, "fastest", lambda *_, **__: chosen)
    first = bert(tiny_checkpoint)
    Trainer(first, loss, collate, USUAL, checkpoints=tmp_path).fit(rows())
    shutil.rmtree(sorted(tmp_path.glob("step-*"))[-1])
    monkeypatch.setattr(trainer, "fastest", lambda *_, **__: Choice("bfloat16", ("sdpa",) * 3))
    seen, again = [], bert(tiny_checkpoint)
    result = Trainer(again, watching(seen), collate, USUAL, checkpoints=tmp_path).fit(
        rows(), resume=True)
    assert set(seen) == {"eager"} and result.dtype == "float32"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))


def test_measuring_changes_nothing(tiny_checkpoint, monkeypatch, tmp_path):
    "Not the weights, not the random numbers: the run after it is the same."
    monkeypatch.setenv("SFTBOOK_CACHE", str(tmp_path))
    monkeypatch.setattr(autotune, "_TABLES", {})
    model = bert(tiny_checkpoint)
    before, drawn = [p.clone() for p in model.parameters()], torch.get_rng_state()
    assert speed_table(model) and fastest(model, [5]).kernels
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert torch.equal(drawn, torch.get_rng_state())


def test_on_a_gpu_nothing_is_measured_and_nothing_is_put_in(tiny_checkpoint):
    model = bert(tiny_checkpoint)
    assert fastest(model, [5], "mps") == Choice("float32")
    with faster(model, rows(), torch.device("cuda")) as table:
        assert table is None
        assert not any(isinstance(m, CompactEmbedding) for m in model.modules())


# ---- word vectors in use

def test_an_evaluation_sees_all_words_as_plain_training_would_have_them(tiny_checkpoint):
    model, start, seen = bert(tiny_checkpoint), bert(tiny_checkpoint), []

    def evaluate(model):
        seen.append(model.get_input_embeddings().weight.detach().clone())
        return {}

    config = replace(USUAL, weight_decay=0.5, warmup_steps=0, bf16=False)
    Trainer(model, loss, collate, config, evaluate=evaluate).fit(rows())
    whole = start.get_input_embeddings().weight
    unused = torch.ones(len(whole), dtype=torch.bool)
    unused[list({i for row in rows() for i in row["input_ids"]} | {0})] = False
    factors = [(table[unused] / whole[unused]).detach() for table in seen]
    assert [table.shape for table in seen] == [whole.shape] * 2 and unused.sum() > 5
    assert factors[0].max() < 1 and factors[1].max() < factors[0].min()
    assert torch.equal(seen[-1], model.get_input_embeddings().weight)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_table_is_whole_again_after_an_error(tiny_checkpoint, error):
    model, start, calls = bert(tiny_checkpoint), bert(tiny_checkpoint), []
    table = model.get_input_embeddings()

    def failing(model, batch):
        calls.append(1)
        if len(calls) == 5:
            raise error
        return loss(model, batch)

    with pytest.raises(error):
        Trainer(model, failing, collate, USUAL).fit(rows())
    assert model.get_input_embeddings() is table
    moved = (table.weight != start.get_input_embeddings().weight).any(1)
    assert moved[5] and table.weight.shape == start.get_input_embeddings().weight.shape
    assert list(model.state_dict()) == list(start.state_dict())


def test_a_token_that_no_row_has_is_refused_and_one_of_an_augmentation_is_not(tiny_checkpoint):
    def strange(features):
        some = [{**f, "input_ids": [20, *f["input_ids"]]} if len(f["input_ids"]) == 3 else f
                for f in features]
        return collate(some)

    def augment(features, rng):
        return {**features, "input_ids": [20] + features["input_ids"]}

    with pytest.raises(TrainingError, match="token 20 stands in a batch and in no row"):
        Trainer(bert(tiny_checkpoint), loss, strange, USUAL).fit(rows())
    Trainer(bert(tiny_checkpoint), loss, collate, USUAL, augment=augment).fit(rows())


def test_a_killed_run_with_a_compact_table_resumes_bit_for_bit(tiny_checkpoint, tmp_path):
    "On the same model object too, whose table has been trained for a while by then."
    config = replace(USUAL, save_steps=2, weight_decay=0.1, metric_for_best_model="score")
    whole, stopped, calls = bert(tiny_checkpoint), bert(tiny_checkpoint), []

    def evaluate(model):
        return {"score": -model.get_input_embeddings().weight.norm().item()}

    def stopping(model, batch):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return loss(model, batch)

    Trainer(whole, loss, collate, config, evaluate=evaluate).fit(rows())
    cut = Trainer(stopped, stopping, collate, config, evaluate=evaluate, checkpoints=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(rows())
    result = cut.fit(rows(), resume=True)
    assert "resumed after step 8" in result.messages[0]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), stopped.parameters()))


@pytest.mark.parametrize("change", ["tied", "frozen", "most words"])
def test_a_table_that_must_stay_whole_stays(tiny_checkpoint, change):
    model, features = bert(tiny_checkpoint), rows()
    if change == "tied":
        model.decoder = nn.Linear(32, 25, bias=False)
        model.decoder.weight = model.get_input_embeddings().weight
    if change == "frozen":
        model.get_input_embeddings().requires_grad_(False)
    if change == "most words":
        features = [dict(input_ids=list(range(20)))]
    with compact_word_vectors(model, features) as compact:
        assert compact is None


def test_padding_that_is_no_token_of_the_model_is_found(tiny_checkpoint):
    "A decoder's padding token stands in its tokenizer alone."
    model = bert(tiny_checkpoint)
    model.config.pad_token_id = None
    model.get_input_embeddings().padding_idx = None

    def padded(features):
        return pad_batch(features, {"input_ids": 23})

    Trainer(model, loss, padded, USUAL).fit(rows())
