"""Run the notebooks of the book and save their outputs.

    python tools/book.py                 those whose code has changed since their outputs were saved
    python tools/book.py 04_trainer ...  these, changed or not
    python tools/book.py --check         say which saved outputs are stale; exit code 1 if any is
    python tools/book.py --stamp 04_trainer ...

The last runs nothing: it says that the saved outputs belong to the code as it is now. It is for
changes that cannot change what is printed; the reason belongs into the commit's message.

The code of an output is the notebook's own and what it reaches in the package (tools/reach.py).
Two notebooks run at a time, each in a process of its own and in the profile `full`, the longest
first. A notebook is written as soon as it is done, so that a stopped run goes on where it was; one
that fails is left as it was.
"""
import argparse
import json
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent))

import reach  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SKIP = reach.DIRECTIVES
AT_A_TIME = 2


def notebooks():
    "All notebooks of the book, in reading order."
    found = (ROOT / "nbs").rglob("[!_]*.ipynb")  # a draft begins with _
    return sorted(p for p in found if ".ipynb_checkpoints" not in p.parts)


def short(path):
    "A notebook's name, such as foundations/10_ngram."
    return path.relative_to(ROOT / "nbs").with_suffix("").as_posix()


@lru_cache
def package():
    return reach.Package(ROOT)


def code_name(nb, path):
    "A name for the code that makes a notebook's outputs, and for each of its parts."
    sources = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]
    return package().name(sources, path.parent)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def saved_name(nb):
    return nb["metadata"].get("sftbook", {})


def name_of_before(nb):
    "The name that outputs had until the code of the package counted too: the notebook's own text."
    code = "\0".join("".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code")
    return reach.digest(code)


def is_stale(path):
    nb = read(path)
    saved = saved_name(nb)
    if "parts" not in saved:
        return saved.get("code") != name_of_before(nb)
    return saved["code"] != code_name(nb, path)["code"]


def what_changed(nb, path):
    "The parts of the code that are not what they were: the notebook, or modules that it reaches."
    before, now = saved_name(nb).get("parts", {}), code_name(nb, path)["parts"]
    if not before:
        return "nothing is known of its code"
    return ", ".join(sorted(p for p in {*before, *now} if before.get(p) != now.get(p)))


def tidy(output):
    "What a reader wants: no addresses of objects, no folders of a machine, no progress bars."
    if output.output_type == "stream" and output.name == "stderr":
        return None
    if output.output_type == "stream":
        output.text = clean_text(output.text)
    for kind, data in output.get("data", {}).items():
        if isinstance(data, str) and (kind.startswith("text/") or kind == "application/javascript"):
            output.data[kind] = clean_text(data)
    if "execution_count" in output:
        output.execution_count = None
    output.get("metadata", {}).clear()
    return output


def merge(outputs):
    "What was printed in several pieces is one piece for a reader."
    merged = []
    for output in outputs:
        if merged and output.output_type == "stream" and merged[-1].output_type == "stream":
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def clean_text(text):
    text = re.sub(r"(?<= at )0x[0-9a-f]{6,}", "0x...", text)
    return text.replace(str(ROOT) + os.sep, "").replace(str(Path.home()), "~")


def execute(nb, path):
    "Run the cells of a notebook, but for those that are not for every machine."
    from nbclient import NotebookClient

    os.environ["SFTBOOK_PROFILE"] = "full"
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    skipped = [(cell, cell.source) for cell in code if SKIP.search(cell.source)]
    for cell, _ in skipped:
        cell.source = ""
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(nb, timeout=None, kernel_name="python3", store_widget_state=True,
                            extra_arguments=["--log-level=ERROR"], resources=resources)
    client.execute()
    for cell, source in skipped:
        cell.source = source
    return code


def run(path):
    "Execute a notebook and put tidy outputs into it; raises when a cell fails."
    nb, start = nbformat.read(path, as_version=4), time.perf_counter()
    code = execute(nb, path)
    outputs = [output for cell in code for output in cell.outputs]
    noise = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    for cell in code:
        cell.execution_count, cell.metadata = None, nbformat.from_dict({})
        cell.outputs = merge([o for o in map(tidy, cell.outputs) if o is not None])
    keep_metadata(nb, path, round(time.perf_counter() - start))
    return nb, noise


def keep_metadata(nb, path, seconds):
    "What a notebook keeps: kernel, widgets that are shown, which code ran and how long."
    outputs = [o for cell in nb.cells if cell.cell_type == "code" for o in cell.outputs]
    shown = any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs)
    kept = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"},
            "sftbook": {**code_name(nb, path), "profile": "full", "seconds": seconds}}
    if shown and "widgets" in nb.metadata:
        kept["widgets"] = nb.metadata.widgets
    nb.metadata = nbformat.from_dict(kept)


def write(nb, path):
    "Write a notebook as nbdev does, whole or not at all."
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            for kind, data in output.get("data", {}).items():
                if isinstance(data, str) and kind.startswith("text/"):
                    output.data[kind] = data.splitlines(keepends=True)
                elif isinstance(data, str):  # an image is one string, or nbdev_clean cannot read it
                    output.data[kind] = data.rstrip("\n")
            if output.output_type == "stream":
                output.text = output.text.splitlines(keepends=True)
        cell.source = cell.source.splitlines(keepends=True)
    write_json(nb, path)


def write_json(nb, path):
    from sftbook.core import write_text

    write_text(path, json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def run_and_write(path):
    "One notebook, from start to file: what there is to say about it."
    nb, noise = run(path)
    write(nb, path)
    said = [f"  on stderr, not saved: {text.strip()[:300]}" for text in noise]
    return [f"{short(path)}: {saved_name(nb)['seconds']} s", *said]


def longest_first(paths):
    "What is not known comes first: it may be the longest."
    return sorted(paths, key=lambda p: -saved_name(read(p)).get("seconds", float("inf")))


def run_all(paths):
    "Run notebooks, some at a time; returns those that failed."
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // AT_A_TIME)))
    failed = []
    with ProcessPoolExecutor(AT_A_TIME, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(run_and_write, path): path for path in longest_first(paths)}
        for done in as_completed(waiting):
            if error := done.exception():
                failed.append(waiting[done])
                print(f"{short(waiting[done])}: failed\n{error}", flush=True)
            else:
                print(*done.result(), sep="\n", flush=True)
    return failed


def stamp(path):
    "Give saved outputs the name of the code as it is now."
    nb = read(path)
    changed, name = what_changed(nb, path), code_name(nb, path)
    if saved_name(nb).get("code") == name["code"]:
        print(f"{short(path)}: fresh already")
        return
    nb["metadata"]["sftbook"] = {"profile": "full", **saved_name(nb), **name}
    write_json(nb, path)
    print(f"{short(path)}: stamped, not run ({changed})")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 04_trainer or foundations/10_ngram")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--stamp", action="store_true")
    args = parser.parse_args()
    known = {short(path): path for path in notebooks()}
    if unknown := set(args.names) - set(known):
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}")
    named = [known[name] for name in args.names]
    if args.stamp:
        if not named:
            parser.error("--stamp needs the names of notebooks")
        for path in named:
            stamp(path)
    elif args.check:
        stale = [path for path in named or notebooks() if is_stale(path)]
        for path in stale:
            print(f"{short(path)}: outputs of other code ({what_changed(read(path), path)}); "
                  "run `make book`")
        sys.exit(bool(stale))
    else:
        sys.exit(bool(run_wanted(named)))


def run_wanted(named):
    "What was named, or what is stale; and what has become stale by it, as where results are read."
    failed = run_all(named or [path for path in notebooks() if is_stale(path)])
    if not named:
        again = [path for path in notebooks() if is_stale(path) and path not in failed]
        failed += run_all(again) if again else []
    return failed


if __name__ == "__main__":
    main()
