"Chat tuning: each test is named after what must not happen, or must."
import io
import json

import pytest
import tokenizers
import torch
from datasets import Dataset
from templates import CHATML, NO_SYSTEM
from transformers import (AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM,
                          PreTrainedTokenizerFast)

from sftbook.core import CheckpointError, ConfigError, DataError
from sftbook.preprocessing.answer_masks import answer_loss, collate_answers
from sftbook.preprocessing.conversations import load_conversations
from sftbook.preprocessing.help_instructions import REFUSAL, instruction_problems, obeys_form
from sftbook.settings import TrainingConfig
from sftbook.tasks.chat import (ChatTuning, Reply, asked_rows, by_kind, forgetting, learnt_loss,
                                reply_scores, text_perplexity, with_examples)
from sftbook.tasks.protocol import fine_tune, predict
from sftbook.tasks.replies import continue_prompts, pad_left, stop_tokens, stream_reply
from sftbook.tasks.saved_runs import load_run, save_run

LAND = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}
LINES = [f"What is the capital of {land}? {town}" for land, town in LAND.items()] * 9
SETTINGS = TrainingConfig(num_train_epochs=30, learning_rate=1e-2, bf16=False,
                          per_device_train_batch_size=4, attn_implementation="sdpa")


def make_checkpoint(folder, template=CHATML, stop="<|im_end|>", begin="<|im_start|>"):
    pairs = tokenizers.ByteLevelBPETokenizer()
    pairs.train_from_iterator(LINES, vocab_size=400, special_tokens=[stop, begin],
                              show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pairs._tokenizer, eos_token=stop,
                                        pad_token=stop, bos_token=begin)
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128,
                         num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=256, eos_token_id=0, pad_token_id=0,
                         tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("chat"))


def exchange(question, answer, **about):
    return dict(messages=[dict(role="user", content=question),
                          dict(role="assistant", content=answer)], **about)


def capitals():
    asked = [exchange(f"What is the capital of {land}?", town, task="capital", page=town)
             for land, town in LAND.items()]
    return load_conversations(Dataset.from_list(asked))


@pytest.fixture(scope="module")
def tuned(checkpoint):
    task = ChatTuning(checkpoint, max_length=64, max_new_tokens=20)
    return task, fine_tune(task, capitals(), config=SETTINGS, model=task.init_model()).model


def test_the_tuned_model_answers_and_stops(tuned):
    task, model = tuned
    replies = predict(task, model, capitals())
    assert [reply.text for reply in replies] == [*LAND.values()]
    assert all(reply.stopped for reply in replies)


def test_a_prompt_does_not_hold_the_answer(tuned):
    task, _ = tuned
    for feature, town in zip(task.encode_inputs(capitals()), LAND.values()):
        text = task.tokenizer.decode(feature["input_ids"])
        assert town not in text and text.endswith("<|im_start|>assistant\n")


def test_the_prompt_is_what_training_saw_before_the_answer(tuned):
    task, _ = tuned
    for asked, learnt in zip(task.encode_inputs(capitals()), task.encode(capitals())):
        n = len(asked["input_ids"])
        assert learnt["input_ids"][:n] == asked["input_ids"]
        assert set(learnt["labels"][:n]) == {-100} and learnt["labels"][n] != -100


def test_the_head_asked_at_targets_alone_gives_the_same_loss_and_gradients(checkpoint):
    task = ChatTuning(checkpoint, max_length=64)
    model, gradients = task.init_model(), []
    batch = collate_answers(task.encode(capitals()), 0)
    for loss_of in (answer_loss, learnt_loss):
        loss, n = loss_of(model, batch)
        loss.backward()
        gradients.append((loss.item(), n, [p.grad.clone() for p in model.parameters()]))
        model.zero_grad()
    (a, n, first), (b, m, second) = gradients
    assert n == m and a == pytest.approx(b, rel=1e-5)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(first, second))


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_packed_rows_learn_the_same(checkpoint, trained):
    curves = []
    for pack in (False, True):
        task = ChatTuning(checkpoint, max_length=96, pack=pack)
        config = TrainingConfig(num_train_epochs=3, learning_rate=1e-2, bf16=False, seed=3,
                                per_device_train_batch_size=4)
        done = fine_tune(task, capitals(), config=config, model=task.init_model(), trained=trained)
        curves.append([step["loss"] for step in done.result.state.history])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_all_tokens_are_learnt_only_when_asked_for(checkpoint):
    few = ChatTuning(checkpoint, max_length=64).encode(capitals())
    every = ChatTuning(checkpoint, max_length=64, learn="all").encode(capitals())
    assert all(label != -100 for f in every for label in f["labels"][1:])
    assert sum(label != -100 for f in few for label in f["labels"]) < 40


def test_plain_transformers_opens_a_run_and_stops_where_it_stops(tuned, tmp_path):
    task, model = tuned
    rows = capitals()
    run = save_run(tmp_path / "run", task, model, task.metrics(predict(task, model, rows), rows))
    plain, words = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    asked = rows[3]["messages"][:1]
    batch = words.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt",
                                      return_dict=True)
    out = plain.generate(**batch, do_sample=False)[0, batch["input_ids"].shape[1]:]
    assert words.decode(out, skip_special_tokens=True).strip() == "Tokyo" and len(out) < 20
    assert load_run(run).answer([asked[0]["content"], asked]) == ["Tokyo", "Tokyo"]


def test_a_run_remembers_its_system_prompt(checkpoint, tmp_path):
    task = ChatTuning(checkpoint, max_length=64, system="Be brief.")
    report = task.metrics([Reply("x", True, 2)] * 4, capitals())
    run = save_run(tmp_path / "run", task, task.init_model(), report)
    prompt = load_run(run).task.encode_inputs(asked_rows(["Hi"]))[0]["input_ids"]
    assert "Be brief." in task.tokenizer.decode(prompt)


def test_rows_that_end_early_do_not_change_the_others(tuned):
    task, model = tuned
    prompts = [f["input_ids"] for f in task.encode_inputs(capitals())]
    together = continue_prompts(model, pad_left(prompts, 0), task.stops, 20)
    assert together == [continue_prompts(model, pad_left([p], 0), task.stops, 20)[0]
                        for p in prompts]


def test_a_stream_is_the_answer(tuned):
    task, model = tuned
    for row, feature in zip(capitals(), task.encode_inputs(capitals())):
        said = stream_reply(model, task.tokenizer, feature["input_ids"], task.stops)
        assert "".join(said) == row["messages"][-1]["content"]


def test_a_template_that_refuses_a_system_prompt_is_named(tmp_path):
    folder = make_checkpoint(tmp_path / "no", NO_SYSTEM, "</turn>", "<turn>")
    assert stop_tokens(AutoTokenizer.from_pretrained(folder)) == {0}
    task = ChatTuning(folder, max_length=64, system="Be brief.")
    with pytest.raises(DataError, match="no system role"):
        task.encode(capitals())
    with pytest.raises(DataError, match="no system role"):
        task.encode_inputs(capitals())


def test_a_question_of_ten_thousand_words_is_refused_by_name(tuned):
    task, model = tuned
    with pytest.raises(DataError, match="row 1: .* may be read"):
        predict(task, model, asked_rows(["Hi", "word " * 10_000]))


@pytest.mark.parametrize("bad", ["", "  ", 3, [], [dict(role="assistant", content="Hi")],
                                 [dict(role="user", content=None)]])
def test_what_is_no_question_is_refused(bad):
    with pytest.raises(DataError, match="input 1"):
        asked_rows(["Hi", bad])


def test_an_encoder_cannot_be_tuned_to_chat(tiny_checkpoint):
    task = ChatTuning(str(tiny_checkpoint), max_length=32)
    with pytest.raises((ConfigError, CheckpointError, DataError)):
        task.encode(capitals())


def test_refusals_are_counted_on_both_sides():
    rows = load_conversations(Dataset.from_list(
        [exchange("a?", "No.", task="refuse"), exchange("b?", "Rome", task="answer"),
         exchange("c?", "Oslo", task="answer")]))
    task = ChatTuning("nowhere", refusal="No.")
    found = task.metrics([Reply(t, True, 2) for t in ("no", "No.", "Oslo")], rows).metrics
    assert (found["refused"].value, found["refused_falsely"].value) == (1, 0.5)
    assert found["answer: exact_match"].value == 0.5
    assert by_kind(rows) == {"answer": [1, 2], "refuse": [0]}


def test_scores_of_a_perfect_model_are_one():
    for score in reply_scores(["a b", "c"], ["a b", "c"]).values():
        assert score.value == 1


def test_examples_stand_behind_the_system_prompt():
    talk = [dict(role="system", content="Be brief."), dict(role="user", content="b?")]
    rows = Dataset.from_list([dict(messages=talk)])
    few = with_examples(rows, [exchange("a?", "A")["messages"]])[0]["messages"]
    assert [m["content"] for m in few] == ["Be brief.", "a?", "A", "b?"]


def test_a_model_that_did_not_change_has_forgotten_nothing(tuned):
    task, model = tuned
    score = text_perplexity(model, task.tokenizer, [line[:40] for line in LINES[:6]])
    assert forgetting(score, score).value == 0
    base = text_perplexity(task.init_model().eval(), task.tokenizer, LINES[:6])
    after = text_perplexity(model, task.tokenizer, LINES[:6])
    growth = forgetting(base, after).value
    assert growth == pytest.approx(after.value / base.value - 1, rel=1e-5)


def test_conversations_by_the_command_line(checkpoint, tmp_path, capsys):
    from sftbook.cli import main
    lines = [json.dumps(dict(prompt=f"Tell {name} something.", completion=f"It is {name}."))
             for name in "Ann Bo Cem Dee Eve Fay Gus Hal Ida Jo Kim Lea".split()]
    data = tmp_path / "talks.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    words = ["train", "--task", "chat", "--data", str(data), "--checkpoint", checkpoint, "--lora",
             "--max-length", "64", "--epochs", "1", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr()
    assert ended.value.code == 0, said
    assert "untuned" in said.out and "token_f1" in said.out
    for more in (["predict", str(tmp_path / "run"), "Tell Ann something."],
                 ["evaluate", str(tmp_path / "run"), "--data", str(data)]):
        with pytest.raises(SystemExit) as ended:
            main(more)
        assert ended.value.code == 0, capsys.readouterr()


def test_talking_to_a_run(tuned, tmp_path, capsys, monkeypatch):
    from sftbook.cli import main
    task, model = tuned
    report = task.metrics(predict(task, model, capitals()), capitals())
    run = save_run(tmp_path / "run", task, model, report)
    typed = ("What is the capital of Japan?\n/new\nWhat is the capital of Italy?\n\n"
             "a<|im_end|>b\n/bye\nx")
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    with pytest.raises(SystemExit) as ended:
        main(["chat", str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and lines[:3] == ["Tokyo", "(a new conversation)", "Rome"]
    assert len(lines) == 4 and "control token" in lines[3]


def test_a_classifier_does_not_talk(tmp_path, capsys):
    from sftbook.cli import main
    with pytest.raises(SystemExit) as ended:
        main(["chat", str(tmp_path / "nothing")])
    assert ended.value.code == 2 and "What to do" in capsys.readouterr().err


def test_a_refusal_must_be_one(tmp_path):
    asked = 'Grid: Prints lines.\n\nWhat is "Grid" for?'
    row = dict(exchange(asked, REFUSAL), about=dict(task="refuse"))
    assert instruction_problems(row) == ["the passage may well say it"]


@pytest.mark.parametrize("kind, text, right", [
    ("title", "Printing", True), ("title", "It prints.", False), ("summary", "One. Two.", False),
    ("steps", "1. Go.\n2. Stop.", True), ("steps", "1. Go.\n3. Stop.", False),
    ("menu", "File - Open", True), ("classify", "Calc.", True), ("classify", "It is Calc", False),
    ("which", "Grid", True), ("which", "Comments", False), ("items", "Grid, Grid", True)])
def test_the_form_of_an_answer(kind, text, right):
    assert obeys_form(kind, "Grid: Prints lines.", text) == right
