"""A report as a list of blocks, rendered to Markdown and to one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from evals.report.pictures import Picture
from evals.results import markdown

CSS = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
pre { background: #8881; padding: 0.7rem; overflow-x: auto; font-size: 0.8rem; }
figure { margin: 1.5rem 0; } figcaption, summary { font-size: 0.9rem; }
img { max-width: 100%; background: white; }
nav ul { columns: 2; padding-left: 1.2rem; }
@media print { details { display: none; } body { max-width: none; } }
"""


class Document:
    """Blocks in order; the text of paragraphs may have `code` and **strong** words."""

    def __init__(self, title: str, directory: Path) -> None:
        """Starts an empty report; `directory` is where pictures go, beside the report."""
        self.title = title
        self.pictures: list[Picture] = []
        self._directory = directory
        self._markdown = [f"# {title}"]
        self._html: list[str] = []
        self._sections: list[str] = []

    def heading(self, text: str) -> None:
        """A section."""
        self._sections.append(text)
        self._markdown.append(f"## {text}")
        self._html.append(f'<h2 id="s{len(self._sections)}">{_inline(text)}</h2>')

    def paragraph(self, text: str) -> None:
        self._markdown.append(text)
        self._html.append(f"<p>{_inline(text)}</p>")

    def items(self, texts: Sequence[str]) -> None:
        self._markdown.append("\n".join(f"- {text}" for text in texts))
        self._html.append("<ul>" + "".join(f"<li>{_inline(t)}</li>" for t in texts) + "</ul>")

    def markdown_table(self, text: str) -> None:
        """A table of `evals.results`, and the note below it if there is one."""
        table, _, note = text.partition("\n\n")
        header, _, *rows = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        )
        self.table(header, rows)
        if note:
            self.paragraph(note)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._markdown.append(markdown(header, rows))
        head = "".join(f"<th>{_inline(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        self._html.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def code(self, text: str) -> None:
        self._markdown.append(f"```sh\n{text}\n```")
        self._html.append(f"<pre><code>{html.escape(text)}</code></pre>")

    def picture(self, picture: Picture) -> None:
        """Writes its files; Markdown links the PNG, HTML holds the SVG."""
        self.pictures.append(picture)
        vector, _ = picture.save(self._directory)
        alt = f"{picture.title}. {picture.caption}"
        self._markdown.append(f"![{picture.title}]({self._directory.name}/{picture.name}.png)")
        self._markdown.append(f"**{picture.title}.** {picture.caption}")
        data = base64.b64encode(vector.read_bytes()).decode()
        self._html.append(
            f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{html.escape(alt)}">'
            f"<figcaption><strong>{_inline(picture.title)}.</strong> {_inline(picture.caption)}"
            f"</figcaption><details><summary>as characters</summary>"
            f"<pre>{html.escape(picture.text)}</pre></details></figure>"
        )

    def to_markdown(self) -> str:
        return "\n\n".join(self._markdown) + "\n"

    def to_html(self) -> str:
        links = "".join(
            f'<li><a href="#s{number}">{_inline(text)}</a></li>'
            for number, text in enumerate(self._sections, start=1)
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            # An empty icon: without one a browser asks for favicon.ico and reports its absence.
            '<link rel="icon" href="data:,">'
            f"<title>{html.escape(self.title)}</title><style>{CSS}</style></head><body>"
            f"<h1>{_inline(self.title)}</h1><nav><ul>{links}</ul></nav>"
            + "\n".join(self._html)
            + "</body></html>\n"
        )


def _inline(text: str) -> str:
    text = html.escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
