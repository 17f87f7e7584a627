"""The card as one self-contained HTML file.

Text of strangers is escaped in the card. Of HTML only the tags that fold its parts pass here. The page's own policy
also forbids every script, request, form and base.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from markupsafe import Markup

from starzoo.evaluate.results import Evaluation
from starzoo.files import write_text
from starzoo.report.card import is_complete, render
from starzoo.report.markdown import check_generated, load_template
from starzoo.star.manifest import StarManifest

__all__ = ["render_report", "write_report"]

_FRONT_MATTER = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)
_GENERATED_MARKER = b"Content-Security-Policy\" content=\"default-src 'none'; img-src data:"  # in the template
_FOLDING = re.compile(r"&lt;(/?(?:details|summary)|details open)&gt;")
_FIGURE = re.compile(r"plots/([a-z]+-[a-z]+)\.png")


def render_report(manifest: StarManifest, repo: str | None = None, *, complete: bool = True) -> str:
    """Write the card of a star as an HTML page that holds its own figures."""
    figures = _draw(manifest.evaluation) if manifest.evaluation else {}
    markdown = MarkdownIt("commonmark", renderer_cls=_Renderer).enable("table")
    text = _FRONT_MATTER.sub("", render(manifest, repo, complete=complete))
    body = Markup(markdown.render(text, {"figures": figures}))
    return load_template("report.html.jinja").render(title=manifest.name, body=body)


def write_report(folder: Path, manifest: StarManifest, repo: str | None = None) -> Path:
    """Write report.html into the folder of a star."""
    page = folder / "report.html"
    check_generated(page, _GENERATED_MARKER)
    write_text(page, render_report(manifest, repo, complete=is_complete(folder, manifest)))
    return page


class _Renderer(RendererHTML):
    """HTML with tables that scroll, and with the figures drawn here as images."""

    def table_open(self, *_: Any) -> str:
        return '<div class="table"><table>\n'

    def table_close(self, *_: Any) -> str:
        return "</table></div>\n"

    def html_block(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return _FOLDING.sub(r"<\1>", str(Markup.escape(tokens[idx].content)))

    def html_inline(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return self.html_block(tokens, idx)

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]) -> str:
        alt = Markup.escape(self.renderInlineAsText(tokens[idx].children, options, env))
        name = _FIGURE.fullmatch(str(tokens[idx].attrs["src"]))
        if name is None or name[1] not in env["figures"]:
            return alt
        return f'<img src="{env["figures"][name[1]]}" alt="{alt}">'


def _draw(evaluation: Evaluation) -> dict[str, str]:
    """Draw every figure, as a data URI by name."""
    from starzoo.report.plots import all_figures, to_png

    return {
        name: f"data:image/png;base64,{b64encode(to_png(figure)).decode('ascii')}"
        for name, figure in all_figures(evaluation)
    }
