"""Words of the glossary are linked where a page first uses them: a dotted line under the word, its
explanation when the mouse rests on it, and the way to the glossary."""
import html
import re
from pathlib import Path

PAGE = "foundations/09c_glossary"
# what is no prose: code, directives, headings, tables, mathematics, links, tags
NO_PROSE = re.compile(
    r"^(`{3,}).*?^\1|^:{3,}.*?$|^#.*?$|^\|.*?$|\$\$.*?\$\$|\$[^$\n]+\$|(?:\{[\w:]+\})?`[^`]+`"
    r"|!?\[[^\]]*\]\([^)]*\)|<(?P<tag>a|figure|svg|script|style|pre)\b.*?</(?P=tag)>|<[^>]+>",
    re.M | re.S)


def read_terms(text: str) -> dict[str, str]:
    "word in small letters -> the first sentence of its explanation."
    found = re.findall(r"^### (.+)\n+(.+)", text, re.M)
    return {word.lower(): plain(said) for word, said in found}


def plain(text: str) -> str:
    "The first sentence, without links and marks."
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.split(r"(?<=[.:]) (?=[A-Z(])", re.sub(r"[*$`\\]", "", text))[0]


def anchor(word: str) -> str:
    return re.sub(r"[^\w-]", "", word.replace(" ", "-"))


class Links:
    "The links of one page: each word once."
    def __init__(self, terms: dict[str, str], page: str):
        self.terms, self.seen = terms, set()
        self.way = "../" * page.count("/") + PAGE + ".html"
        words = "|".join(map(re.escape, sorted(terms, key=len, reverse=True)))
        self.words = re.compile(rf"(?<![\w-])({words})(s?)(?![\w-])", re.I)

    def link(self, match: re.Match) -> str:
        word = match[1].lower()
        if word in self.seen:
            return match[0]
        self.seen.add(word)
        said = html.escape(self.terms[word])
        return f'<a class="term" href="{self.way}#{anchor(word)}" title="{said}">{match[0]}</a>'

    def add(self, text: str) -> str:
        "A cell of Markdown with its words linked."
        out, at = [], 0
        for match in NO_PROSE.finditer(text):
            out += [self.words.sub(self.link, text[at:match.start()]), match[0]]
            at = match.end()
        return "".join([*out, self.words.sub(self.link, text[at:])])


def link_words(books: dict[str, dict]) -> None:
    "Link the words of all pages but the glossary itself, the front page and the errata."
    cells = books[f"{PAGE}.ipynb"]["cells"] if f"{PAGE}.ipynb" in books else []
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    terms = read_terms("\n\n".join(texts))
    for name, book in books.items():
        if not terms or Path(name).stem in (Path(PAGE).name, "index", "errata"):
            continue
        links = Links(terms, name)
        for cell in book["cells"]:
            if cell["cell_type"] == "markdown" and "```{py" not in "".join(cell["source"]):
                cell["source"] = links.add("".join(cell["source"]))
