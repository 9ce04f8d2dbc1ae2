"""Sphinx configuration: `make docs` builds the site from the .md files here and the docstrings."""

import html
import importlib.metadata
import inspect
import os
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import desc, desc_signature
from sphinx.errors import ExtensionError
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent))

import docstrings
import site_pages
import symbols

DOCS = Path(__file__).parent
project = "divjax"
author = "The divjax developers"
copyright = author
version = release = importlib.metadata.version("divjax")
language = "en"
highlight_language = "text"  # blocks that say nothing are diagrams and shell lines
smartquotes = False  # f'(1) is a derivative

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]
templates_path: list[str] = []
nitpicky = False  # types of jax and optax have no page here

myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_show_tb = True  # an error is a warning to Sphinx, and so the end of the build
nb_merge_streams = True

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 72
toc_object_entries_show_parents = "hide"
add_module_names = False
viewcode_line_numbers = False
modindex_common_prefix = ["divjax."]
html_domain_indices = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "divjax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_logo = html_favicon = "static/logo.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "tango"
pygments_dark_style = "github-dark"
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b6e69",
        "color-brand-content": "#0b6e69",
        "color-brand-visited": "#0b6e69",
        "color-api-name": "#0b6e69",
        "color-api-pre-name": "#5c6b73",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5fd3c6",
        "color-brand-content": "#5fd3c6",
        "color-brand-visited": "#5fd3c6",
        "color-api-name": "#5fd3c6",
        "color-api-pre-name": "#9aa7ae",
    },
}


def write_pages(app):
    """Pages of files that lie elsewhere are written anew for each build."""
    for folder in site_pages.FOLDERS:
        shutil.rmtree(DOCS / folder, ignore_errors=True)
    site_pages.write(DOCS)


def quiet_kernels(app):
    """Kernels say on stderr that they listen on this machine; errors of notebooks are raised."""
    profile = Path(app.doctreedir).parent / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'ERROR'\n")
    os.environ["IPYTHONDIR"] = str(profile.parent)


def fill_markers(app, page, source):
    """`<!-- symbols: MODULE -->` becomes the documentation of what is defined there."""
    if Path(app.env.doc2path(page)).suffix == ".md":
        text = site_pages.with_symbols(page, source[0])
        source[0] = site_pages.with_notebooks(site_pages.with_site_links(page, text))


def plain_docstring(app, what, name, thing, options, lines):
    """Docstrings are plain text with Google sections."""
    room = ".".join(name.split(".")[1:-1])
    lines[:] = docstrings.to_rst(lines, room)


def own_signature(app, what, name, thing, options, signature, returns):
    """Signatures as they are written: without what metaclasses and dataclasses make of them."""
    if not signature:
        return None
    if what == "class" and "*args" in signature:  # a protocol, or a flax module
        values = list(inspect.signature(thing.__init__).parameters.values())[1:]
        plain = inspect.Signature([] if vars(thing).get("_is_protocol") else values)
        signature = "" if not plain.parameters else str(plain)
    if "<" in signature:  # Sphinx cannot read these, nor shorten the types before them
        signature = signature.replace("<factory>", "...").replace("<function no_data>", "no_data")
        signature = re.sub(r"~?\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", signature).replace("~", "")
    return signature.replace(" = _NONE", " = {}"), returns


def link_code(app, doctree, page):
    """Code in running text that is a public name becomes a link to it."""
    objects = app.env.domains["py"].objects
    for node in list(doctree.findall(nodes.literal)):
        linked = node.parent  # docstrings have their links already
        while linked is not None and not isinstance(linked, nodes.reference | nodes.title | desc):
            linked = linked.parent
        target = None if linked is not None else symbols.mentioned(node.astext())
        entry = objects.get(f"divjax.{target}") if target else None
        if entry is None:
            continue
        inner = node.deepcopy()
        ref = make_refnode(
            app.builder, page, entry.docname, entry.node_id, inner, f"divjax.{target}"
        )
        node.replace_self(ref)


def write_literal(self, node):
    """Code in running text, which a narrow column breaks after punctuation only."""
    text = re.sub(r"([(.,=])(?=[A-Za-z_])", r"\1<wbr>", html.escape(node.astext(), quote=False))
    tag = self.starttag(node, "code", "", CLASS="docutils literal notranslate")
    self.body.append(f"{tag}{text}</code>")
    raise nodes.SkipNode


def name_aliases(app, doctree):
    """An entry is found under all its names; viewcode links back by the module of the source."""
    aliases = {f"divjax.{s.name}": s.aliases for s in symbols.everything()}
    for node in doctree.findall(desc_signature):
        for name in list(node["ids"]):
            node["ids"] += [f"divjax.{alias}" for alias in aliases.get(name, ())]


def size_cells(app, doctree, page):
    """Cells are marked by their length, so that on a phone a table scrolls and stays legible."""
    for entry in doctree.findall(nodes.entry):
        length = len(entry.astext())
        entry["classes"].append("short" if length < 25 else "medium" if length < 60 else "long")


def check_notebooks(app, error):
    """Every notebook was executed, and without an error."""
    if error is not None:
        return
    for page in site_pages.notebooks():
        data = app.env.nb_metadata[page].get("exec_data") or {}
        if not data.get("succeeded"):
            raise ExtensionError(f"{page} was not executed")
        print(f"{page}: executed in {data['runtime']:.0f} s")


def setup(app):
    """Connects the functions above."""
    app.add_node(nodes.literal, override=True, html=(write_literal, None))
    app.connect("builder-inited", write_pages)
    app.connect("builder-inited", quiet_kernels)
    app.connect("source-read", fill_markers)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("autodoc-process-signature", own_signature)
    app.connect("doctree-read", name_aliases)
    app.connect("doctree-resolved", link_code)
    app.connect("doctree-resolved", size_cells)
    app.connect("build-finished", check_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
