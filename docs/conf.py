"""Settings of Sphinx for the documentation site.

The source folder is the root of the tree, so that a link leads to the same place in a checkout
and on the site: pages in `docs/`, notebooks in `examples/`, the README and its like are pages.
Nothing is fetched, neither by the build nor by a reader's browser. CONTRIBUTING.md has the command.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxRole

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# Notebooks run in processes of their own, in folders of their own.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)

from jessymem import __version__, errors  # noqa: E402  # the tree's own

project = "jessymem"
author = "The jessymem developers"
copyright = f"{author}; BSD-3-Clause"
version = release = __version__

root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "examples/*.ipynb",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
#: What need not be looked through. (`.*` would match the folder of static files, too: it is `.`.)
exclude_patterns = [".??*", "asv_bench", "build", "dist", "jessymem", "kernels", "tests"]
extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
#: `console` blocks hold commands and what they print; some are not Python at all.
suppress_warnings = ["misc.highlighting_failure"]

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 120
#: It starts a cluster and takes minutes: tests run it, where Dask is installed.
nb_execution_excludepatterns = ["examples/many_files.ipynb"]

default_role = "literal"  # a name in single backticks, in a docstring
autosummary_generate = False
autodoc_typehints = "none"  # parameters have their types in the numpydoc sections
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
autodoc_mock_imports = [
    name for name in ("dask", "distributed", "pandas", "pyarrow") if find_spec(name) is None
]
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "pydata_sphinx_theme"
html_title = f"jessymem {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options: dict[str, Any] = {
    "navbar_align": "left",
    "show_prev_next": True,
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_center": [],
    "footer_end": [],
    "logo": {"text": "jessymem"},
}
html_sidebars = {"docs/index": []}


def link_the_page_of_an_error(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Let the reference of an error lead to its section in docs/errors.md."""
    if isinstance(thing, type) and thing.__module__ == errors.__name__:
        lines += ["", f"When it is raised, and what to do: :error:`{thing.__name__}`."]


class ErrorSection(SphinxRole):
    """The role ``error``: a link to the section of an error class, resolved as MyST's own are."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the link."""
        link = pending_xref(
            refdomain="doc",
            reftype="myst",
            refdoc=self.env.docname,
            reftarget="docs/errors",
            reftargetid=self.text.lower(),
            refexplicit=True,
        )
        link += nodes.inline("", f"Errors, {self.text}")
        return [link], []


#: What a browser would fetch by itself; a link that a reader follows is none.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']?(?:https?:)?//"""
    r"""|<link\b(?=[^>]*rel=["']?(?:stylesheet|icon|preload))[^>]*\shref=["']?(?:https?:)?//"""
    r"""|url\(\s*["']?(?:https?:)?//|@import\s+["'](?:https?:)?//""",
    re.IGNORECASE,
)


def check_that_nothing_is_fetched(app: Sphinx, exception: Exception | None) -> None:
    """Fail where a page or a style sheet would make a browser ask another server."""
    if exception is not None:
        return
    for path in sorted(Path(app.outdir).rglob("*")):
        if path.suffix in (".html", ".css") and (found := FETCHED.search(path.read_text("utf-8"))):
            raise ExtensionError(f"{path} fetches from elsewhere: {found[0]}")


def setup(app: Sphinx) -> None:
    """Connect what is of this site alone."""
    app.add_role("error", ErrorSection())
    app.connect("autodoc-process-docstring", link_the_page_of_an_error)
    app.connect("build-finished", check_that_nothing_is_fetched)
