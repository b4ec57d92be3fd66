"""How quickly are bins described by the dense descriptor, and in how much memory?

    python benchmarks/dense.py [--n=65536,262144] [--slide=FILE.tif]

Each row is a square of `n` bins of BIN_UM on drawn tissue in a tiled TIFF of 0.5 um a pixel, which
is read too: `Encoder.embed_slide` of stain_texture_dense, whose rows are dropped as they come.
`peak_gib` is all that the process and its workers held. `seconds_600k` extrapolates to 600,000
bins, a whole Visium HD slide, by the rate of the row. With --slide the TIFF of the first size is
written, to be predicted, and nothing is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import harness
import numpy as np
from harness import Job, Row

SIZES = (65_536, 262_144)
BIN_UM = 8.0
UM_PER_PX = 0.5
EDGE_UM = 100.0  # of the image, around the bins
HD = 600_000
COLUMNS = (
    "what", "n", "spots_per_second", "seconds", "first_seconds", "seconds_600k", "peak_gib",
    "device",
)  # fmt: skip


def job(order: Row) -> Job:
    """A worker's part."""
    from stfm_jax.data.image import ImagePatches
    from stfm_jax.encoders import loading

    side = round(order["n"] ** 0.5)
    folder = tempfile.TemporaryDirectory()
    path = _slide(Path(folder.name) / "slide.tif", _side_um(order["n"]))
    line = EDGE_UM + BIN_UM * (np.arange(side) + 0.5)
    x, y = np.meshgrid(line, line)
    coords_px = np.column_stack([x.ravel(), y.ravel()]) / UM_PER_PX
    encoder = loading.load(order["what"])

    def run():
        _ = folder  # stays until the last run
        with ImagePatches(path, coords_px, UM_PER_PX) as source:
            rows = sum(len(block) for block in encoder.blocks(source, np.arange(side**2)))
        peak = harness.host_peak_gib() + _children_gib()
        return {"evaluations": None, "rows": rows, "peak_gib": peak, **_facts()}

    return run


def _facts() -> Row:
    import jax

    return {"device": harness.cpu_name(), "jax": jax.__version__}


def _side_um(n: int) -> float:
    """Side of the image of `n` bins."""
    return round(n**0.5) * BIN_UM + 2 * EDGE_UM


def _slide(path: Path, side_um: float) -> Path:
    """A tiled TIFF of nuclei on an eosin ground; one piece of it, again and again."""
    import tifffile
    from scipy import ndimage
    from skimage.color import rgb_from_hed

    rng, piece = np.random.default_rng(0), 512
    noise = [ndimage.gaussian_filter(rng.normal(size=(piece,) * 2), s, mode="wrap") for s in (5, 9)]
    nuclei, ground = (n / n.std() for n in noise)
    h, e = 0.6 / (1 + np.exp(-6 * (nuclei - 1))), np.maximum(0.25 + 0.1 * ground, 0)
    density = np.stack([h, e, 0 * h], axis=-1) @ rgb_from_hed
    tile = np.round(255 * 10**-density).astype(np.uint8)
    tiles = int(np.ceil(side_um / UM_PER_PX / piece))
    shape = (tiles * piece, tiles * piece, 3)
    tifffile.imwrite(
        path, (tile for _ in range(tiles**2)), shape=shape, dtype=np.uint8, tile=(piece, piece),
        photometric="rgb",
    )  # fmt: skip
    return path


def _children_gib() -> float:
    """Largest resident memory of the processes that this one started, so far."""
    total = 0
    for line in Path("/proc/self/task").glob("*/children"):
        for child in line.read_text().split():
            status = Path(f"/proc/{child}/status").read_text().splitlines()
            total += sum(int(x.split()[1]) for x in status if x.startswith("VmHWM"))
    return total / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    made = harness.parser("dense", __doc__.split("\n")[0], SIZES)
    made.add_argument("--slide", type=Path, default=None, help="write the TIFF there and stop")
    options = made.parse_args(arguments)
    if options.slide:
        _slide(options.slide, _side_um(options.sizes[0]))
        return
    rows: list[Row] = []
    for n in options.sizes:
        order = {"what": "stain_texture_dense", "impl": "stfm", "n": n, "devices": 1}
        measured = harness.measure(__file__, [order], options.repeats)
        measured = [row | {"seconds_600k": HD / row["spots_per_second"]} for row in measured]
        harness.report(options, measured, COLUMNS)
        rows += measured
    print(harness.table(rows, COLUMNS))
    panels = {"bins": harness.curves(rows, "seconds", lambda r: r["what"])}
    harness.plot(options.figure, panels, "seconds", f"Dense descriptor on {rows[0]['device']}")


if __name__ == "__main__":
    harness.entry(main, job)
