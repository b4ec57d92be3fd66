"""A page holds its pictures, at the size they are drawn at, and nothing foreign is markup."""

import base64
import io
import re

from matplotlib.figure import Figure
from PIL import Image

from stfm_jax.report import page


def test_a_figure_is_in_the_page_at_110_dots_per_inch():
    drawn = Figure(figsize=(3.0, 2.0))
    found = re.search(
        r'alt="a &lt;b&gt;" src="data:image/png;base64,([^"]+)"', page.figure(drawn, "a <b>")
    )
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as image:
        assert image.size == (330, 220)


def test_whatever_is_said_is_escaped():
    parts = [page.heading("<i>"), page.facts({"<i>": "<i>"}), page.table(["<i>"], [["<i>"]])]
    text = page.page("<i>", [*parts, page.paragraph("<i>"), page.warning("<i>")])
    assert "<i>" not in text and text.count("&lt;i&gt;") == 9
