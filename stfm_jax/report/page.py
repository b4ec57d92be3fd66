"""A page of HTML that holds everything it shows: no script, no style, no picture from elsewhere.

Whatever comes from a file is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stfm_jax.plots.slides import take_literally
from stfm_jax.runtime import marks

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff }
p { max-width: 60rem } h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem }
img { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: .5rem 0; display: block; overflow-x: auto }
td, th { padding: .2rem .8rem .2rem 0;
  text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
td { font-variant-numeric: tabular-nums }
.short { font-size: .85rem } .short td { white-space: nowrap }
.warning { border-left: 4px solid #d55e00; background: #fdf3ec; padding: .4rem .8rem }
"""
SHORT = 32  # characters of a cell
# Nothing may be loaded, and no script run, even if something slipped through.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page of parts that are HTML already."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"{marks.html_tag()}\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def warning(text: str) -> str:
    return f'<p class="warning">{escape(text)}</p>'


def facts(rows: Mapping[str, Any]) -> str:
    """A table of names and what is said of them."""
    lines = (
        f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items()
    )
    return f"<table>{''.join(lines)}</table>"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; where no cell is long none is broken, and what is too wide is scrolled."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    short = ' class="short"' if all(len(str(c)) <= SHORT for row in rows for c in row) else ""
    return f"<table{short}><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def picture(path: Path, alt: str) -> str:
    """A PNG, in the page itself."""
    return _embedded(path.read_bytes(), alt)


def figure(drawn: Figure, alt: str) -> str:
    """A figure of matplotlib's, in the page itself."""
    take_literally(drawn)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=110)
    return _embedded(buffer.getvalue(), alt)


def _embedded(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
