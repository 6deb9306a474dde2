"""Sphinx's settings for the book; tools/site.py sets the two variables."""
import os
from configparser import ConfigParser
from pathlib import Path

root, vendored = Path(os.environ["SFTBOOK_SITE_ROOT"]), Path(os.environ["SFTBOOK_SITE_VENDOR"])
config = ConfigParser(delimiters=["="])
config.read(root / "settings.ini", encoding="utf-8")
complete = (vendored / "complete").exists()

project = config["DEFAULT"]["lib_name"]
author = config["DEFAULT"]["author"]
release = version = config["DEFAULT"]["version"]
html_title = project
language = "en"

extensions = ["myst_nb", "sphinx_design", "sphinx-mathjax-offline"]
if (root / "nbs" / "references.bib").exists():
    extensions.append("sphinxcontrib.bibtex")
    bibtex_bibfiles = [str(root / "nbs" / "references.bib")]
    bibtex_default_style = "unsrt"
    bibtex_reference_style = "author_year"
exclude_patterns = ["jupyter_execute", "**.ipynb_checkpoints"]
source_suffix = {".ipynb": "myst-nb"}
root_doc = "index"

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_number_source_lines = False
nb_ipywidgets_js = {"widgets/require.js": {}, "widgets.js": {}, "widgets/embed-amd.js": {}} if complete else {}
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath", "deflist", "attrs_inline", "attrs_block", "substitution", "tasklist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
numfig = True
add_module_names = False
maximum_signature_line_length = 60
python_display_short_literal_types = True
toc_object_entries = False
pygments_style = "github-light"

html_theme = "sphinx_book_theme"
html_static_path = ["static", str(root / "nbs" / "styles.css")] + ([str(vendored / "static")] if complete else [])
html_css_files = ["styles.css"]
# before require.js, which would take Mermaid for one of its own modules
html_js_files = [("mermaid/mermaid.min.js", {"priority": 90}), ("diagrams.js", {"priority": 91})] if complete else []
html_js_files.append(("pictures.js", {"priority": 92}))
html_favicon = "static/logo.svg"
html_sourcelink_suffix = ""
html_copy_source = True
html_last_updated_fmt = None
html_show_sphinx = False
html_show_search_summary = False  # it would fetch the pages found, which a site opened from a folder may not
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": project, "image_light": "logo.svg", "image_dark": "logo.svg", "alt_text": project},
    "use_download_button": True,
    "use_fullscreen_button": False,
    "use_source_button": False,
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "pygments_light_style": "github-light",
    "pygments_dark_style": "github-dark",
    "navbar_persistent": [],
    "footer_content_items": [],
}


def only_where_needed(app, pagename, templatename, context, doctree):
    "The diagram scripts are big: only pages with a diagram load them."
    if doctree is None or 'class="mermaid"' not in context.get("body", ""):
        context["script_files"] = [s for s in context["script_files"] if not str(getattr(s, "filename", s)).endswith(("mermaid.min.js", "diagrams.js"))]


def setup(app):
    app.connect("html-page-context", only_where_needed, priority=900)
