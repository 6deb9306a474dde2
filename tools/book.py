"""Run the notebooks of the book and save their outputs.

    python tools/book.py                 those whose code has changed since their outputs were saved
    python tools/book.py 04_trainer ...  these, changed or not
    python tools/book.py --check         say which saved outputs are stale; exit code 1 if any is

Each notebook runs in a process of its own, in the profile `full`. A notebook that fails is left as it was.
"""
import argparse
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
SKIP = re.compile(r"^#\|\s*(eval:\s*false|slow|gpu)\s*$", re.MULTILINE)


def notebooks():
    "All notebooks of the book, in reading order."
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def code_hash(nb):
    "A name for the code of a notebook; comments that are directives count, prose does not."
    code = "\0".join(c.source for c in nb.cells if c.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def is_stale(nb):
    return nb.metadata.get("sftbook", {}).get("code") != code_hash(nb)


def tidy(output):
    "Saved outputs hold what a reader wants: no addresses of objects, no folders of this machine, no progress on stderr."
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


def run(path):
    "Execute a notebook and put tidy outputs into it; raises when a cell fails."
    from nbclient import NotebookClient

    nb = nbformat.read(path, as_version=4)
    skipped = {i: cell.source for i, cell in enumerate(nb.cells) if cell.cell_type == "code" and SKIP.search(cell.source)}
    for i in skipped:
        nb.cells[i].source = ""
    os.environ["SFTBOOK_PROFILE"] = "full"
    client = NotebookClient(nb, timeout=None, kernel_name="python3", store_widget_state=True, extra_arguments=["--log-level=ERROR"], resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    for i, source in skipped.items():
        nb.cells[i].source = source
    noise = [o.text for c in nb.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream" and o.name == "stderr"]
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.execution_count, cell.metadata = None, nbformat.from_dict({})
            cell.outputs = merge([o for o in map(tidy, cell.outputs) if o is not None])
    keep_metadata(nb)
    return nb, noise


def keep_metadata(nb):
    "What a notebook keeps: kernel, the state of widgets that are shown, and which code the outputs belong to."
    shown = any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for c in nb.cells if c.cell_type == "code" for o in c.outputs)
    kept = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}, "sftbook": {"code": code_hash(nb), "profile": "full"}}
    if shown and "widgets" in nb.metadata:
        kept["widgets"] = nb.metadata.widgets
    nb.metadata = nbformat.from_dict(kept)


def write(nb, path):
    "Write a notebook as nbdev does, whole or not at all."
    from sftbook.core import write_text

    for cell in nb.cells:
        for output in cell.get("outputs", []):
            for kind, data in output.get("data", {}).items():
                if isinstance(data, str):  # text as lines, an image as one string: nbdev_clean reads nothing else
                    output.data[kind] = data.splitlines(keepends=True) if kind.startswith("text/") else data.rstrip("\n")
            if output.output_type == "stream":
                output.text = output.text.splitlines(keepends=True)
        cell.source = cell.source.splitlines(keepends=True)
    write_text(path, json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 04_trainer or cases/20_text_classification")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    wanted = [p for p in notebooks() if not args.names or p.relative_to(ROOT / "nbs").with_suffix("").as_posix() in args.names]
    stale = [p for p in wanted if args.names or is_stale(nbformat.read(p, as_version=4))]
    if args.check:
        for p in stale:
            print(f"{p.relative_to(ROOT)}: its code has changed since its outputs were saved; run `make book`")
        sys.exit(bool(stale))
    for path in stale:
        start = time.perf_counter()
        print(f"{path.relative_to(ROOT)} ...", end=" ", flush=True)
        nb, noise = run(path)
        write(nb, path)
        print(f"{time.perf_counter() - start:.0f} s")
        for text in noise:
            print(f"  on stderr, not saved: {text.strip()[:300]}")


if __name__ == "__main__":
    main()
