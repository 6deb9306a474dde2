"Richer pre-training: rows belong to their texts, killed stages lose nothing, processes agree."
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sftbook.core import ConfigError, RunStopped
from sftbook.foundations import pretraining_stages, richer_pretraining
from sftbook.foundations.pretraining import character_tokenizer, init_encoder
from sftbook.foundations.pretraining_stages import load_richer, prepare_material, pretrain_stage
from sftbook.foundations.richer_pretraining import (
    PackedRows, Reading, RicherEncoder, Stage, encode_words, text_order)
from sftbook.model import load_model
from sftbook.trainer import TrainingConfig

SIGNS = list("天地人你我他山水火木金土日月上下左右大小多少好坏来去，。！１２３Ａｂ…  ")
KINDS = ["n", "v", "w", "no such kind"]


def drawn_texts(rng, n):
    "Texts of random signs, cut at random, with random tags; some are empty or white space only."
    words, kinds = [], []
    for i in range(n):
        sizes = rng.integers(1, 5, rng.integers(0, 12))
        words.append(["".join(rng.choice(SIGNS, size)) for size in sizes])
        kinds.append(rng.choice(KINDS, len(sizes)).tolist() if i % 3 else None)
    return words, kinds


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(["".join(SIGNS)] * 5)


@pytest.fixture(autouse=True)
def few_tags(monkeypatch):
    "Tags that need no corpus."
    names = [f"{place}-{kind}" for kind in KINDS[:3] for place in "BI"]
    for module in (richer_pretraining, pretraining_stages):
        monkeypatch.setattr(module, "tag_names", lambda least=100: names)


def by_hand(tokenizer, words, kinds):
    "Token, whether it begins a word, and tag of each token of a text, word by word."
    found = []
    for k, word in enumerate(words):
        for j, token in enumerate(tokenizer.tokenize(word)):
            tag = -100
            if kinds and kinds[k] in KINDS[:3]:
                tag = 2 * KINDS.index(kinds[k]) + (j > 0)
            found.append((token.removeprefix("##"), j == 0, tag))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_token_comes_once_a_pass_with_its_word_tag_and_text(tokenizer, seed):
    rng = np.random.default_rng(seed)
    words, kinds = drawn_texts(rng, 40)
    tokens = encode_words(tokenizer, words, kinds)
    orders = [text_order(len(tokens), rng, block=4) for _ in range(2)]
    rows = list(PackedRows(tokens, tokenizer, int(rng.integers(4, 30)), orders))
    found = {i: [] for i in range(len(words))}
    for row in rows:
        assert len({len(row[k]) for k in ("input_ids", "words", "tags", "texts")}) == 1
        assert row["input_ids"][0] == tokenizer.cls_token_id
        assert row["input_ids"][-1] == tokenizer.sep_token_id
        assert (np.diff(row["words"]) >= 0).all() and row["words"][0] == 0
        new = np.diff(row["words"], prepend=-1) > 0
        for j in np.flatnonzero(row["texts"] >= 0):
            first = new[j] if j > 1 else None  # a row may begin within a word
            token = tokenizer.convert_ids_to_tokens(int(row["input_ids"][j]))
            found[row["texts"][j]].append((token.removeprefix("##"), first, int(row["tags"][j])))
    for i in range(len(words)):
        expected = 2 * [(t, b, g) for t, b, g in by_hand(tokenizer, words[i], kinds[i])]
        assert len(expected) == len(found[i])
        for (token, begins, tag), (ours, new, ours_tag) in zip(expected, found[i]):
            assert (token, tag) == (ours, ours_tag) and new in (None, begins)


def test_a_latin_word_is_never_cut_by_the_words_of_chinese(tokenizer):
    "Letters within a word have `##`; a word border inside one would need another token."
    tokens = encode_words(tokenizer, [["Ａｂ１", "好"]])
    assert tokens.begins.tolist() == [True, False, False, True]


def test_teacher_is_asked_for(tokenizer):
    tokens = encode_words(tokenizer, [["好"]])
    with pytest.raises(ConfigError, match="teacher"):
        Reading(Stage("x", vector_weight=1.), tokens, tokenizer)


@dataclass(frozen=True)
class Short(Stage):
    "A stage of float32 with checkpoints every third update."
    def config(self, steps=1000):
        plain = super().config(steps)
        return TrainingConfig(**{**vars(plain), "save_steps": 3, "bf16": False})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A folder with material and a start, both tiny; texts are drawn."
    folder, patch = tmp_path_factory.mktemp("run"), pytest.MonkeyPatch()
    rng = np.random.default_rng(0)
    words, kinds = drawn_texts(rng, 60)
    texts = list(map("".join, words))
    names = [f"{place}-{kind}" for kind in KINDS[:3] for place in "BI"]
    patch.setattr(pretraining_stages, "known_words", lambda texts: (words, kinds))
    patch.setattr(richer_pretraining, "tag_names", lambda least=100: names)
    material = prepare_material(folder, {"drawn": texts}, {"drawn": texts[:4]}, judged=4)
    patch.undo()
    start = init_encoder(folder / "start", material.tokenizer, hidden_size=64, num_hidden_layers=1)
    said = rng.normal(size=(len(texts), 8)).astype(np.float16)
    np.save(folder / "said.npy", said)
    return folder, material, start, said


STAGE = Short("straight", length=16, warmup_steps=2, tag_weight=0.5, vector_weight=1., passes=2)


def weights(home):
    return load_file(home / "encoder" / "model.safetensors"), load_file(home / "heads.safetensors")


def same(a, b):
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
               for x, y in zip(weights(a), weights(b)))


def test_a_stage_that_was_killed_ends_with_the_same_bits(run):
    folder, material, start, said = run
    straight = pretrain_stage(folder, STAGE, material, start, said, steps=4)

    class Killed:
        "Ends without a word, between two checkpoints."
        def __getattr__(self, hook):
            return lambda *_: None

        def on_step_end(self, state, record):
            if state.step == 8:
                raise KeyboardInterrupt

    stage = replace(STAGE, name="killed")
    with pytest.raises(KeyboardInterrupt):
        pretrain_stage(folder, stage, material, start, said, steps=4, callbacks=[Killed()])
    assert not (folder / "killed" / "encoder").exists()
    assert [p.name for p in (folder / "killed" / "checkpoints").glob("step-*")]
    resumed = pretrain_stage(folder, stage, material, start, said, steps=4)
    assert same(straight, resumed)
    logs = [json.loads((home / "log.json").read_text()) for home in (straight, resumed)]
    assert logs[0]["evaluations"] == logs[1]["evaluations"]
    assert logs[0]["losses"] == logs[1]["losses"]
    assert not (resumed / "checkpoints").exists()


def test_another_seed_gives_other_bits(run):
    "The comparison above can fail."
    folder, material, start, said = run
    straight = pretrain_stage(folder, STAGE, material, start, said, steps=4)
    other = pretrain_stage(folder, replace(STAGE, name="other", seed=1), material, start, said)
    assert not same(straight, other)


def test_a_stage_that_is_asked_to_stop_keeps_a_checkpoint(run):
    folder, material, start, said = run

    class Asks:
        def __getattr__(self, hook):
            return lambda *_: None

        def on_step_end(self, state, record):
            if state.step == 4:
                signal.raise_signal(signal.SIGTERM)

    stage = replace(STAGE, name="asked")
    with pytest.raises(RunStopped):
        pretrain_stage(folder, stage, material, start, said, callbacks=[Asks()])
    assert list((folder / "asked" / "checkpoints").glob("step-*"))


def test_gradients_reach_all_heads_and_the_next_stage_takes_them_on(run):
    folder, material, start, said = run
    done = pretrain_stage(folder, STAGE, material, start, said, steps=4)
    fresh, trained = load_richer(start, 6, 8), load_richer(done, 6, 8)
    assert torch.equal(trained.tag_head.weight, load_file(done / "heads.safetensors")[
        "tag_head.weight"])
    reading = Reading(STAGE, material.tokens, material.tokenizer, said)
    rows = PackedRows(material.tokens, material.tokenizer, 16, [np.arange(len(material.tokens))])
    some = [reading.augment(rows[i], np.random.default_rng(i)) for i in range(8)]
    loss, n = reading.loss(fresh, reading.collate(some))
    (loss / n).backward()
    unused = {"mlm.bert.embeddings.token_type_embeddings.weight"}
    without = [name for name, p in fresh.named_parameters()
               if name not in unused and (p.grad is None or not p.grad.norm() > 0)]
    assert not [name for name in without if "key.bias" not in name], without
    assert load_richer(done).tag_head is None  # a stage without tags needs no head


def test_plain_transformers_opens_the_encoder_of_a_stage(run):
    folder, material, start, said = run
    done = pretrain_stage(folder, STAGE, material, start, said, steps=4)
    model = load_model("AutoModel", str(done / "encoder"))
    assert type(model).__name__ == "BertModel"
    assert model.config.hidden_dropout_prob == 0.1  # for fine-tuning
    assert isinstance(load_richer(done), RicherEncoder)
    assert load_richer(done).config.hidden_dropout_prob == 0  # and none for what follows


PROCESSES = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
import test_richer_pretraining as t
from sftbook.foundations import pretraining_stages, richer_pretraining
names = [f"{place}-{kind}" for kind in t.KINDS[:3] for place in "BI"]
for module in (richer_pretraining, pretraining_stages):
    module.tag_names = lambda least=100: names
folder = Path(sys.argv[2])
stage = t.replace(t.STAGE, name="two", batch_size=4, passes=1)
t.pretrain_stage(folder, stage, t.prepare_material(folder), folder / "start",
                 np.load(folder / "said.npy"))
"""


def test_two_processes_compute_what_one_does(run, tmp_path):
    folder, material, start, said = run
    pretrain_stage(folder, replace(STAGE, name="one", batch_size=8, passes=1), material, start,
                   said)
    script = tmp_path / "two.py"
    script.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
               str(script), str(Path(__file__).parent), str(folder)]
    quiet = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [json.loads((folder / name / "log.json").read_text()) for name in ("one", "two")]
    assert logs[1]["processes"] == 2 and logs[0]["steps"] == logs[1]["steps"]
    losses = [[line["loss"] for line in log["losses"]] for log in logs]
    assert np.allclose(*losses, rtol=1e-4)
    assert not np.allclose(losses[0], losses[0][::-1], rtol=1e-4)  # they do differ by the update
