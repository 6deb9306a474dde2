"""Make README.md from nbs/index.ipynb: its prose and the outputs of its cells.

    python tools/readme.py [--check]
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cell_text(cell):
    "Markdown of a cell: prose as it is, code only when it is meant to be seen, outputs as text."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return links(source)
    if re.search(r"^#\|\s*hide\s*$", source, re.MULTILINE):
        return ""
    shown = "" if "#| echo: false" in source else f"```python\n{source}\n```\n\n"
    return shown + "\n\n".join(output_text(o) for o in cell["outputs"])


def output_text(output):
    if output["output_type"] == "stream":
        return "```text\n" + "".join(output["text"]).rstrip() + "\n```"
    data = output["data"]
    for kind in ("text/markdown", "text/plain"):
        if kind in data:
            text = "".join(data[kind]).rstrip()
            return text if kind == "text/markdown" else f"```text\n{text}\n```"
    return ""


def links(text):
    "Links between chapters point at the notebooks."
    return re.sub(r"\]\((?!https?:|#)([\w/]+\.ipynb)\)", r"](nbs/\1)", text)


def main():
    index = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    parts = [p.strip() for p in map(cell_text, index["cells"]) if p.strip()]
    text = "\n\n".join(parts) + "\n\n<!-- made from nbs/index.ipynb by `make readme` -->\n"
    readme = ROOT / "README.md"
    if "--check" in sys.argv:
        if readme.read_text(encoding="utf-8") != text:
            sys.exit("README.md is not what nbs/index.ipynb says; run `make readme`")
        return
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
