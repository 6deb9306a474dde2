"""Run the systems of chapter cases/23_translation, one line of JSON for each.

    python tools/translation.py FOLDER                 all that are missing
    python tools/translation.py FOLDER --only phrases  those whose name begins so
    python tools/translation.py FOLDER --list          what there is, and what is missing

FOLDER holds what is made on the way: the split, the vocabulary, translations that are not all
there yet, checkpoints of trainings. A run that was cut goes on where it was; those that are in
nbs/cases/translation_runs.jsonl are not made again.
"""
import argparse
import json
import time
from pathlib import Path

from sftbook.autotune import machine_name
from sftbook.evaluation.generation import bleu, chrf
from sftbook.preprocessing.help_splits import split_help_pages
from sftbook.preprocessing.placeholders import count_kept, hide_pair
from sftbook.tasks.phrase_translation import PhraseWeights, learn_phrases
from sftbook.tasks.translation import Translation, pairs_to_learn, train_tokenizer
from sftbook.tasks.translation_memory import TranslationMemory, WordByWord
from sftbook.trainer import TrainingConfig
from sftbook.translation_pairs import OUT_OF_DOMAIN, load_translation_pairs

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "nbs" / "cases" / "translation_runs.jsonl"
WEIGHTS = {"en>zh": dict(token=1.3, farthest=5),  # chosen on validation rows
           "zh>en": dict(token=0.9, farthest=5)}
SIZES = dict(hidden_size=192, encoder_layers=3, decoder_layers=2, heads=4, feed_forward=768)


def plans():
    "System, direction, pairs that are learned from, rows that are translated: every so manieth."
    for direction in WEIGHTS:  # a look first, in a few minutes
        for system, pairs in [("phrases", "all"), ("dictionary", "all"), ("memory", "help"),
                              ("copy", None)]:
            yield dict(system=system, direction=direction, pairs=pairs, part="test", every=5)
    for direction in WEIGHTS:
        for system, pairs in [("copy", None), ("memory", "help"), ("memory", "all"),
                              ("phrases", "all"), ("phrases", "help"), ("dictionary", "all"),
                              ("phrases", 4000), ("phrases", 1000)]:
            yield dict(system=system, direction=direction, pairs=pairs, part="test", every=1)
        yield dict(system="phrases", direction=direction, pairs="all", part=OUT_OF_DOMAIN,
                   every=1)
    for pairs in ("help", "all"):
        for direction in WEIGHTS:
            yield dict(system="transformer", direction=direction, pairs=pairs, part="test",
                       every=1)


# ---- rows

def as_pairs(rows):
    return [[pair["en"], pair["zh"]] for pair in rows["translation"][:]]


def load_parts(folder):
    "{part: [[English, Chinese]]}, made once."
    path = folder / "parts.json"
    if not path.exists():
        splits = split_help_pages()
        parts = {name: as_pairs(splits[name]) for name in ("train", "validation", "test")}
        parts["more"] = as_pairs(load_translation_pairs())
        parts[OUT_OF_DOMAIN] = as_pairs(load_translation_pairs([OUT_OF_DOMAIN]))
        path.write_text(json.dumps(parts, ensure_ascii=False))
    return json.loads(path.read_text())


def learned_from(parts, pairs, direction):
    "(source, target) of the pairs of a plan."
    rows = parts["train"]
    if pairs == "all":
        rows = rows + parts["more"]
    elif isinstance(pairs, int):
        rows = rows[::len(rows) // pairs][:pairs]
    return [tuple(row if direction == "en>zh" else row[::-1]) for row in rows]


def vocabulary(folder, parts, size=8000):
    "One for all runs: pieces of all training pairs."
    path = folder / "vocabulary"
    if not path.exists():
        hidden = [side for pair in parts["train"] + parts["more"] for side in hide_pair(*pair)]
        train_tokenizer(hidden, size).save_pretrained(path)
    return Translation(str(path), max_length=128, sizes=SIZES)


# ---- systems

def transformer(folder, parts, plan):
    "Train one model for both directions; a function from texts to texts."
    from datasets import Dataset

    from sftbook.tasks.protocol import fine_tune, predict

    task, direction = vocabulary(folder, parts), plan["direction"]
    rows = parts["train"] + (parts["more"] if plan["pairs"] == "all" else [])
    rows = Dataset.from_list([dict(translation=dict(en=en, zh=zh)) for en, zh in rows
                              if len(en) < 400])
    config = TrainingConfig(
        learning_rate=2e-3, num_train_epochs=60 if plan["pairs"] == "help" else 20,
        per_device_train_batch_size=48, warmup_steps=500, lr_scheduler_type="inverse_sqrt",
        weight_decay=0., ema_decay=0.999, bf16=False, attn_implementation="sdpa",
        save_seconds=300)
    model = fine_tune(task, pairs_to_learn(rows), config=config, resume=True,
                      checkpoints=folder / f"transformer-{plan['pairs']}").model
    source = direction[:2]

    def translate(texts):
        given = Dataset.from_list([dict(translation={source: text}, direction=direction)
                                   for text in texts])
        return [found.text for found in predict(task, model, given)]
    return translate


def system(folder, parts, plan):
    "A function from texts to texts."
    name, direction = plan["system"], plan["direction"]
    if name == "transformer":
        return transformer(folder, parts, plan)
    if name == "copy":
        return list
    pairs = learned_from(parts, plan["pairs"], direction)
    if name == "memory":
        one = TranslationMemory(pairs)
    else:
        tokenizer = vocabulary(folder, parts).tokenizer
        one = learn_phrases(pairs, tokenizer, PhraseWeights(**WEIGHTS[direction]))
        if name == "dictionary":
            one = WordByWord(tokenizer, one.table.there)
    return lambda texts: [one(text) for text in texts]


# ---- runs

def translate_all(path, translate, texts, chunk=40):
    "All translations; what was there already is kept, and each chunk is written."
    done, seconds = [], 0.
    for line in path.read_text().splitlines() if path.exists() else ():
        part = json.loads(line)
        done, seconds = done + part["texts"], seconds + part["seconds"]
    while len(done) < len(texts):
        start = time.process_time()
        found = translate(texts[len(done):len(done) + chunk])
        part = dict(texts=found, seconds=time.process_time() - start)
        with path.open("a") as file:
            file.write(json.dumps(part, ensure_ascii=False) + "\n")
        done, seconds = done + found, seconds + part["seconds"]
    return done, seconds


def run(folder, parts, plan):
    "Learn, translate and measure."
    source = 0 if plan["direction"] == "en>zh" else 1
    rows = parts[plan["part"]][::plan["every"]]
    texts, references = [row[source] for row in rows], [row[1 - source] for row in rows]
    name = "-".join(str(value).replace(">", "2") for value in plan.values())
    start = time.process_time()
    translate = system(folder, parts, plan)
    learning = time.process_time() - start
    found, seconds = translate_all(folder / f"{name}.partial.jsonl", translate, texts)
    scores = bleu(references, found), chrf(references, found)
    return dict(bleu=scores[0].value, chrf=scores[1].value,
                signatures=[score.signature for score in scores],
                kept=count_kept(texts, found), rows=len(texts), learning_seconds=round(learning),
                translating_seconds=round(seconds, 1), processor=machine_name(),
                texts=None if plan["system"] == "copy" else found)


def finished():
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    return [json.loads(line)["settings"] for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for what is made on the way")
    parser.add_argument("--only", default="", help="beginning of a name, such as phrases-en")
    parser.add_argument("--list", action="store_true", help="say what there is")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for plan in plans():
        name, there = "-".join(map(str, plan.values())), plan in finished()
        if options.list:
            print("there  " if there else "missing", name)
        elif not there and name.startswith(options.only):
            result = run(options.folder, load_parts(options.folder), plan)
            with RUNS.open("a") as file:
                line = dict(settings=plan, result=result)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            print(name, f"BLEU {100*result['bleu']:.2f}", f"chrF {100*result['chrf']:.2f}",
                  flush=True)


if __name__ == "__main__":
    main()
