"""Make README.md from nbs/index.ipynb: its prose, the outputs of its cells, and its pictures.

    python tools/readme.py [--check]
"""
import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def option(source, key):
    "The value of a line `#| key: value` of a cell."
    found = re.search(rf"^#\|\s*{key}:\s*(.*?)\s*$", source, re.MULTILINE)
    return found[1].strip('"') if found else ""


def cell_text(cell, pictures):
    "Markdown of a cell: prose as it is, code only when it is meant to be seen, outputs as text."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return links(without_divs(source))
    if re.search(r"^#\|\s*hide\s*$", source, re.MULTILINE):
        return ""
    shown = "" if "#| echo: false" in source else f"```python\n{source}\n```\n\n"
    return shown + "\n\n".join(output_text(o, source, pictures) for o in cell["outputs"])


def output_text(output, source, pictures):
    "An output as Markdown; a picture becomes a file that is named after its cell's label."
    if output["output_type"] == "stream":
        return "```text\n" + "".join(output["text"]).rstrip() + "\n```"
    data = output["data"]
    if "image/png" in data:
        path = f"nbs/{option(source, 'label')}.png"
        pictures[path] = base64.b64decode("".join(data["image/png"]))
        return f"![{option(source, 'fig-alt')}]({path})"
    for kind in ("text/markdown", "text/plain"):
        if kind in data:
            text = "".join(data[kind]).rstrip()
            return text if kind == "text/markdown" else f"```text\n{text}\n```"
    return ""


def without_divs(text):
    "Blocks between lines with ::: are for the site; GitHub shows what is in them."
    return re.sub(r"^:{3,}.*\n?", "", text, flags=re.MULTILINE)


def links(text):
    "Links between chapters point at the notebooks."
    return re.sub(r"\]\((?!https?:|#)([\w/]+\.ipynb)\)", r"](nbs/\1)", text)


def made():
    "{file: its bytes} of all that is made from the landing page."
    index = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    files = {}
    parts = [cell_text(cell, files).strip() for cell in index["cells"]]
    text = "\n\n".join(part for part in parts if part)
    files["README.md"] = f"{text}\n\n<!-- made from nbs/index.ipynb by `make readme` -->\n".encode()
    return files


def main():
    for name, content in made().items():
        path = ROOT / name
        if path.exists() and path.read_bytes() == content:
            continue
        if "--check" in sys.argv:
            sys.exit(f"{name} is not what nbs/index.ipynb says; run `make readme`")
        path.write_bytes(content)


if __name__ == "__main__":
    main()
