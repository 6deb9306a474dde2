"""What is trained of a model, in every architecture at hand: places of parameters, rates, gradual
unfreezing, heads on vectors that are computed once, LoRA. A test says what must not happen."""
import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from sftbook.core import CheckpointError, ConfigError, quiet
from sftbook.lora import (
    _learnt, add_lora, base_fingerprint, load_lora, lora_layers, lora_targets, merge_lora,
    save_lora)
from sftbook.model import add_mean_pooling, output_layer
from sftbook.trained_parts import (
    GradualUnfreezing, HeadOnly, body_layers, freeze, frozen_features, head_only, head_parts,
    layer_places, parameter_groups)

TINY = dict(vocab_size=50, num_hidden_layers=3, hidden_size=16, num_attention_heads=2,
            intermediate_size=32, pad_token_id=1)
KINDS = {
    "Bert": TINY,
    "Roberta": TINY,
    "Electra": TINY | dict(embedding_size=8),
    "Albert": TINY | dict(embedding_size=8),
    "DebertaV2": TINY | dict(relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "DistilBert": dict(vocab_size=50, n_layers=3, dim=16, n_heads=2, hidden_dim=32,
                       pad_token_id=1),
    "GPT2": dict(vocab_size=50, n_layer=3, n_embd=16, n_head=2, n_positions=64, pad_token_id=49,
                 eos_token_id=49, bos_token_id=49),
    "Llama": TINY | dict(num_key_value_heads=2),
    "Qwen2": TINY | dict(num_key_value_heads=2),
}
NEW = {"Roberta": {"classifier"}, "DistilBert": {"pre_classifier", "classifier"},
       "DebertaV2": {"pooler", "classifier"}, "GPT2": {"score"}, "Llama": {"score"},
       "Qwen2": {"score"}}
ROWS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14], [15, 16, 17, 18], [19, 20], [21, 22, 23]]


def tiny(kind, task="SequenceClassification", seed=0, **config):
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind] | config)
    return getattr(transformers, f"{kind}For{task}")(config).eval()


def collate_for(model):
    def collate(features):
        longest = max(len(f["input_ids"]) for f in features)
        pad = model.config.pad_token_id
        rows = [f["input_ids"] + [pad] * (longest - len(f["input_ids"])) for f in features]
        mask = [[1] * len(f["input_ids"]) + [0] * (longest - len(f["input_ids"])) for f in features]
        batch = dict(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask))
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([f["labels"] for f in features])
        return batch

    return collate


class Toy:
    "As much of a task as training a head needs."
    augment = None

    def __init__(self, model):
        self.collate = collate_for(model)

    def encode(self, rows):
        return [dict(input_ids=row, labels=i % 2) for i, row in enumerate(rows)]

    def infer(self, model, batch):
        return model(**{k: v for k, v in batch.items() if k != "labels"}).logits

    def loss(self, model, batch):
        scores = self.infer(model, batch)
        return nn.functional.cross_entropy(scores, batch["labels"], reduction="sum"), len(scores)


def batch_of(model):
    return collate_for(model)([dict(input_ids=row) for row in ROWS])


def train(task, model, steps=6, rate=0.05, rows=ROWS):
    "Full batches, so that only the model matters."
    optimizer = torch.optim.AdamW(parameter_groups(model, rate))
    for _ in range(steps):
        optimizer.zero_grad()
        loss, n = task.loss(model, task.collate(task.encode(rows)))
        (loss / n).backward()
        optimizer.step()


# ---- places and rates

@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_its_place(kind):
    model = tiny(kind)
    places, layers = layer_places(model), len(body_layers(model))
    assert layers == (1 if kind == "Albert" else 3)
    assert places.keys() == dict(model.named_parameters()).keys()
    assert set(places.values()) == set(range(layers + 2))
    for name in places:
        outside = name.startswith(tuple(head_parts(model)))
        assert not outside or places[name] == layers + 1
    below = {id(p) for p in model.get_input_embeddings().parameters()}
    assert {places[n] for n, p in model.named_parameters() if id(p) in below} == {0}


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_what_is_new(kind):
    parts = head_parts(tiny(kind))
    assert set(parts) == NEW.get(kind, {"classifier"})
    assert any(output_layer(tiny(kind)).weight.shape == p.shape for part in parts.values()
               for p in part.parameters())


@pytest.mark.parametrize("kind,task", [("Bert", "MaskedLM"), ("GPT2", "CausalLM")])
def test_a_model_of_language_has_no_new_part(kind, task):
    torch.manual_seed(0)
    class_name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}For{task}"
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind])
    assert head_parts(getattr(transformers, class_name)(config)) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_rates_fall_towards_the_embeddings(kind):
    model = tiny(kind)
    groups = parameter_groups(model, 1.0, head_learning_rate=5.0, layer_decay=0.5)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert len(rates) == sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    places, layers = layer_places(model), len(body_layers(model))
    body = {id(p) for p in model.base_model.parameters()}
    for name, p in model.named_parameters():
        expected = 0.5 ** max(0, layers - places[name]) if id(p) in body else 5.0
        assert rates[id(p)] == expected, name


def test_a_decay_of_one_changes_nothing():
    model = tiny("Bert")
    plain, one = parameter_groups(model, 1e-3), parameter_groups(model, 1e-3, layer_decay=1.0)
    assert [[id(p) for p in g["params"]] for g in plain] == [
        [id(p) for p in g["params"]] for g in one]


def test_layers_that_are_not_known_are_refused():
    with pytest.raises(ConfigError, match="layers of this model are not known"):
        parameter_groups(nn.Linear(2, 3), 1e-3, layer_decay=0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_freezing_everything_below_leaves_what_is_above(kind):
    model = tiny(kind)
    freeze(model, len(body_layers(model)))
    places = layer_places(model)
    for name, p in model.named_parameters():
        assert p.requires_grad == (places[name] == len(body_layers(model)) + 1), name
    batch = batch_of(model)
    model(**batch).logits.sum().backward()
    assert output_layer(model).weight.grad is not None


# ---- gradual unfreezing

def unfreezing_run(kind, epochs, saved=None, over=2):
    model = tiny(kind)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01, layer_decay=0.7), fused=True)
    unfreezing = GradualUnfreezing(model, over)
    if saved:
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
    task = Toy(model)
    for epoch in epochs:
        unfreezing.begin(epoch)
        optimizer.zero_grad()
        loss, n = task.loss(model, task.collate(task.encode(ROWS)))
        (loss / n).backward()
        optimizer.step()
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_killed_run_unfreezes_as_one_that_was_not(kind, stop):
    straight = unfreezing_run(kind, range(4))
    resumed = unfreezing_run(kind, range(stop, 4), saved=unfreezing_run(kind, range(stop)))
    assert all(torch.equal(t, resumed[0][n]) for n, t in straight[0].items())


def test_frozen_layers_neither_move_nor_decay():
    start, (after, optimizer) = tiny("Bert"), unfreezing_run("Bert", [0])
    places = layer_places(start)
    for name, p in start.named_parameters():
        assert torch.equal(p, after[name]) == (places[name] < 4), name
    assert len(optimizer["state"]) == sum(place == 4 for place in places.values())


def test_what_somebody_froze_is_not_unfrozen():
    model = freeze(tiny("Bert"), 1)
    learn = {n for n, p in model.named_parameters() if p.requires_grad}
    unfreezing = GradualUnfreezing(model, 2)
    for epoch in range(4):
        unfreezing.begin(epoch)
        assert {n for n, p in model.named_parameters() if p.requires_grad} <= learn
    unfreezing.end()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == learn


# ---- the head alone

@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTBOOK_CACHE", str(tmp_path))
    monkeypatch.setattr("sftbook.trained_parts.pick_dtype", lambda device: torch.float32)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_on_kept_vectors_takes_the_steps_of_one_on_a_frozen_body(kind, own_cache):
    through, fast = freeze(tiny(kind)), tiny(kind)
    start = output_layer(fast).weight.clone()
    train(Toy(through), through)
    task, alone = head_only(Toy(fast), fast)
    train(task, alone)
    moved = (output_layer(through).weight - start).abs().max()
    assert moved > 0.1
    for a, b in zip(through.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    with torch.no_grad():  # and the body answers again
        torch.testing.assert_close(fast(**batch_of(fast)).logits, through(**batch_of(fast)).logits,
                                   rtol=1e-3, atol=1e-3)


def test_only_the_head_is_in_a_checkpoint(own_cache):
    model = tiny("Roberta")
    names = set(HeadOnly(model).state_dict())
    assert names and all(name.startswith("parts.classifier.") for name in names)


def test_a_head_that_moves_takes_its_body_along():
    model = tiny("Roberta")
    HeadOnly(model).to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(torch.tensor([ROWS[0]])).logits.dtype == torch.float64


def test_a_body_that_changed_is_asked_again(own_cache):
    model = tiny("Bert")
    features, collate = [dict(input_ids=row) for row in ROWS], collate_for(model)
    first = frozen_features(model, features, collate)
    again = frozen_features(model, features, collate)
    assert np.array_equal(first, again) and len(list((own_cache / "arrays").iterdir())) == 1
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] += 1
    assert not np.allclose(first, frozen_features(model, features, collate))
    fewer = frozen_features(model, features[:2], collate)
    assert fewer.shape == (2, 2, 16) and len(list((own_cache / "arrays").iterdir())) == 3


def test_vectors_are_read_without_dropout_and_the_mode_comes_back(own_cache):
    model = tiny("Bert", hidden_dropout_prob=0.5).train()
    features, collate = [dict(input_ids=row) for row in ROWS], collate_for(model)
    first = frozen_features(model, features, collate)
    assert model.training and model.bert.training
    with torch.no_grad():
        told = model.eval().bert(**batch_of(model)).pooler_output
    torch.testing.assert_close(torch.from_numpy(first[:, 1]), told, rtol=1e-4, atol=1e-5)


def test_a_head_of_zeros_is_no_riddle(own_cache):
    "Its scores are the same whatever it reads; what it reads is compared, not the scores."
    model = tiny("GPT2")
    with torch.no_grad():
        output_layer(model).weight.zero_()
    vectors = frozen_features(model, [dict(input_ids=row) for row in ROWS], collate_for(model))
    with torch.no_grad():
        last = model.transformer(torch.tensor([ROWS[0]])).last_hidden_state[0, -1]
    torch.testing.assert_close(torch.from_numpy(vectors[0, 0]), last, rtol=1e-4, atol=1e-5)


def test_a_head_that_reads_every_token_is_refused(own_cache):
    model = tiny("Bert", task="TokenClassification")
    with pytest.raises(ConfigError, match="more than one vector"):
        frozen_features(model, [dict(input_ids=row) for row in ROWS], collate_for(model))


def test_mean_pooling_stays_a_mean_whatever_is_trained(own_cache):
    def pooled(model):
        layer = model.bert.encoder.layer[-1].attention.self
        return [m.weight for m in (layer.query, layer.key)]

    def ways():
        yield "full", lambda m: m
        yield "head", lambda m: freeze(m)
        yield "lora", lambda m: add_lora(m, rank=2, targets="all-linear")

    for name, change in ways():
        model = change(add_mean_pooling(tiny("Bert")))
        train(Toy(model), model)
        model = merge_lora(model)
        assert not any(weight.any() for weight in pooled(model)), name
        assert len(body_layers(model)) == 4


# ---- LoRA

def trained_lora(kind, **settings):
    torch.manual_seed(3)
    model = add_lora(tiny(kind), rank=4, **settings)
    train(Toy(model), model)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_merged_is_unmerged(kind, targets):
    model = trained_lora(kind, targets=targets)
    plain = tiny(kind)
    with torch.no_grad():
        before, wanted = plain(**batch_of(model)).logits, model(**batch_of(model)).logits
        merged = merge_lora(copy.deepcopy(model))
        torch.testing.assert_close(merged(**batch_of(model)).logits, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).abs().max() > 1e-2  # something was learnt
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert not lora_layers(merged) and all(p.requires_grad for p in merged.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_only_corrections_and_head_learn(kind):
    plain, model = tiny(kind), trained_lora(kind)
    heads = tuple(head_parts(model))
    learnt = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in n or n.startswith(heads) for n in learnt)
    assert {n for n, _ in model.named_parameters() if n.startswith(heads)} <= learnt
    assert base_fingerprint(model) == base_fingerprint(plain)
    assert all(n.startswith(model.base_model_prefix) for n in lora_targets(plain, "all-linear"))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_alone_open_here_and_in_plain_peft(kind, tmp_path):
    from peft import PeftModel

    model = trained_lora(kind)
    folder = save_lora(model, tmp_path / "adapters")
    ours = load_lora(tiny(kind), folder)
    with quiet():
        theirs = PeftModel.from_pretrained(tiny(kind), str(folder)).eval()
    with torch.no_grad():
        wanted, batch = model(**batch_of(model)).logits, batch_of(model)
        assert torch.equal(ours(**batch).logits, wanted)
        torch.testing.assert_close(theirs(**batch).logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "GPT2"])
def test_adapters_that_peft_saved_are_opened(kind, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    with quiet():
        config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8)
        theirs = get_peft_model(tiny(kind), config).eval()
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p)
        theirs.save_pretrained(str(tmp_path))
    ours = load_lora(tiny(kind, seed=0), tmp_path)
    with torch.no_grad():
        batch = batch_of(ours)
        torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits,
                                   rtol=1e-5, atol=1e-5)


def test_a_model_of_language_trains_corrections_alone(tmp_path):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**KINDS["Llama"]))
    add_lora(model, rank=2)
    assert all(".lora_" in n for n, p in model.named_parameters() if p.requires_grad)
    folder = save_lora(model, tmp_path / "adapters")
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] is None


def test_corrections_are_drawn_under_the_seed():
    first, second, third = (list(_learnt(drawn(seed)).values()) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, third, strict=True))


def drawn(seed):
    model = tiny("Bert")
    torch.manual_seed(seed)
    return add_lora(model)


# ---- adapters that are refused; the model is as it was

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_lora(trained_lora("Bert"), tmp_path_factory.mktemp("lora") / "adapters")


def refused(folder, model=None):
    model = model or tiny("Bert")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_lora(model, folder)
    now = model.state_dict()
    assert before.keys() == now.keys() and all(torch.equal(p, now[n]) for n, p in before.items())
    return str(caught.value)


def changed(saved, tmp_path, **settings):
    "A copy whose settings were changed, with nothing that would notice it but the reader."
    import shutil

    folder = tmp_path / "changed"
    shutil.copytree(saved, folder)
    (folder / "MANIFEST.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_other_weights_below_are_refused(saved):
    assert "trained on other weights" in refused(saved, tiny("Bert", seed=7))


def test_another_architecture_and_other_labels_are_refused(saved, tmp_path):
    folder = changed(saved, tmp_path)
    (folder / "base.json").unlink()
    assert "do not fit this model" in refused(folder, tiny("Roberta"))
    assert "do not fit this model" in refused(folder, tiny("GPT2"))
    assert "not (5, 16)" in refused(folder, tiny("Bert", num_labels=5))


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "settings gone", "no json"])
def test_damaged_adapters_are_refused(saved, tmp_path, damage):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    data = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(data[:-10])
    elif damage == "flipped":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "gone":
        weights.unlink()
    elif damage == "settings gone":
        settings.unlink()
    else:
        settings.write_text("{")
    assert str(folder) in refused(folder)


def test_a_file_that_is_cut_is_noticed_without_a_manifest(saved, tmp_path):
    folder = changed(saved, tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "damaged" in refused(folder)
    weights.write_bytes(b"")
    assert "damaged" in refused(folder)


def test_a_pickle_is_not_opened(saved, tmp_path):
    folder = changed(saved, tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    assert "pickle" in refused(folder)


@pytest.mark.parametrize("settings", [
    dict(megatron_config={"a": 1}, megatron_core="os"), dict(use_dora=True), dict(bias="all"),
    dict(target_modules=".*(a|aa)+$"), dict(target_modules=[1]), dict(target_modules=[]),
    dict(peft_type="IA3"), dict(r=0), dict(r="4"), dict(r=True), dict(r=None), dict(r=2),
    dict(lora_alpha="x"), dict(lora_alpha=None), dict(lora_alpha=0), dict(lora_dropout=1.5),
    dict(lora_dropout="0"), dict(rank_pattern={"query": 2}), dict(init_lora_weights="pissa"),
    dict(something_new={"path": "x"}), dict(use_rslora=True), dict(trainable_token_indices=[1]),
    dict(target_modules=["no_such_layer"]), dict(layer_replication=[[0, 2]]),
], ids=str)
def test_settings_that_are_not_known_are_refused(saved, tmp_path, settings):
    assert "What to do" in refused(changed(saved, tmp_path, **settings))


def test_weights_that_are_not_finite_are_refused(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = changed(saved, tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.classifier.bias"][0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    assert "not finite" in refused(folder)


def test_a_folder_that_is_there_is_not_written_over(saved):
    with pytest.raises(ConfigError, match="already exists"):
        save_lora(trained_lora("Bert"), saved)


def test_the_library_is_imported_when_it_is_used():
    code = "import sys, sftbook.lora; print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
