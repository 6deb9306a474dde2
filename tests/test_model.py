"""The output layer and what it reads, in every architecture; limits that a model really has. Each
test is named after what broke."""
import json

import pytest
import torch
import transformers

from sftbook.model import (
    ByteDropout, checkpoint_pooling, head_inputs, output_layer, position_limit)
from sftbook.trained_parts import body_layers, parameter_groups

TINY = dict(vocab_size=50, num_hidden_layers=2, hidden_size=16, num_attention_heads=2,
            intermediate_size=32, pad_token_id=1)
KINDS = {
    "Bert": TINY,
    "Roberta": TINY,
    "Electra": TINY | dict(embedding_size=16),
    "DistilBert": dict(vocab_size=50, n_layers=2, dim=16, n_heads=2, hidden_dim=32,
                       pad_token_id=1),
    "GPT2": dict(vocab_size=50, n_layer=2, n_embd=16, n_head=2, n_positions=64, pad_token_id=49,
                 eos_token_id=49, bos_token_id=49),
    "Llama": TINY | dict(num_key_value_heads=2),
}


def tiny(kind, labels):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind], num_labels=labels)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [3, 16])  # 16 is a width of the body, too
def test_the_output_layer_gives_the_scores(kind, labels):
    model = tiny(kind, labels)
    rows, pad = [[5, 6, 7, 8], [9, 10]], model.config.pad_token_id
    ids = torch.tensor([row + [pad] * (4 - len(row)) for row in rows])
    batch = dict(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    with torch.no_grad(), head_inputs(model) as seen:
        scores = model(**batch).logits
        torch.testing.assert_close(output_layer(model)(seen[0]), scores)


def test_a_text_that_ends_in_the_padding_token_is_read_where_gpt2_reads_it():
    model = tiny("GPT2", 3)
    with torch.no_grad(), head_inputs(model) as seen:
        ids = torch.tensor([[1, 2, 3, 49]])
        scores = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(output_layer(model)(seen[0]), scores)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_of_every_architecture_are_found(kind):
    assert len(body_layers(tiny(kind, 3))) == 2


def test_limits_are_those_of_the_model():
    roberta = transformers.RobertaConfig(max_position_embeddings=514, pad_token_id=1)
    deberta = transformers.DebertaV2Config(relative_attention=True, position_biased_input=False)
    assert position_limit(roberta) == 512
    assert position_limit(transformers.GPT2Config()) == 1024
    assert position_limit(transformers.T5Config()) is None
    assert position_limit(deberta) is None


def test_a_hub_id_keeps_its_pooling(tmp_path, monkeypatch):
    commit = tmp_path / "models--someone--encoder" / "snapshots" / ("0" * 40)
    (commit / "1_Pooling").mkdir(parents=True)
    says_mean = json.dumps({"pooling_mode_mean_tokens": True})
    (commit / "1_Pooling" / "config.json").write_text(says_mean)
    (tmp_path / "models--someone--encoder" / "refs").mkdir()
    (tmp_path / "models--someone--encoder" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    assert checkpoint_pooling("someone/encoder") == "mean"


def test_a_head_rate_of_zero_is_zero():
    rates = {g["lr"] for g in parameter_groups(tiny("Bert", 3), 1e-3, head_learning_rate=0.0)}
    assert rates == {1e-3, 0.0}


def test_byte_dropout_divides_by_nothing_that_is_zero():
    assert torch.isfinite(ByteDropout(0.999)(torch.ones(1000))).all()
    with pytest.raises(Exception, match="below 1"):
        ByteDropout(1.0)
