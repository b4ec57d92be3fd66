"""How a folder of each kind is read, as a command would; and a child that reads damaged ones.

    python reads.py FOLDER      in lines: KIND SEED; out: a line before and one after each

Nothing here imports JAX: a child that dies is started again at once, and 4 GiB of addresses do.
"""

from __future__ import annotations

import logging
import random
import resource
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np

from stfm_jax.data import embeddings
from stfm_jax.data.geojson import labels, read_regions
from stfm_jax.data.image import ImagePatches
from stfm_jax.data.images.opening import open_image
from stfm_jax.data.readers import (
    h5ad,
    h5ad_counts,
    her2st,
    hest,
    hest1k,
    inputs,
    spatial_data,
    stimage,
    transcripts,
    visium,
    visium_hd,
    xenium,
)
from stfm_jax.errors import InputError
from stfm_jax.runtime.files import load_arrays, read_json

ADDRESSES = 4 << 30  # bytes
UM_PER_PX = 0.25


def image(path: Path) -> None:
    """All levels, and patches."""
    with open_image(path) as opened:
        for number, level in enumerate(opened.levels):
            opened.read(number, 0, 0, min(level.width, 200), min(level.height, 200))
    places = np.array([[50.0, 50.0], [60.0, 40.0]])
    ImagePatches(path, places, 0.5).read(np.arange(2), 20.0)


def to_predict(path: Path, **options) -> None:
    slide = inputs.read_to_predict(path, inputs.Options(**options))
    np.asarray(slide.features)


def section(folder: Path) -> None:
    her2st.read(folder, "A1").patches.read(np.arange(2), 100.0)


def of_hest(folder: Path) -> None:
    hest.published_folds(folder, "IDC")
    genes = hest.genes(folder, "IDC")
    slide = hest.read(folder, "IDC", "A1", embed_root=folder / "embed", encoder="uni")
    slide.patches.read(np.arange(2), 100.0)
    assert len(genes)


def counts(folder: Path) -> None:
    names = h5ad.read_to_predict(folder / "a.h5ad").barcodes
    h5ad_counts.read_expression(folder / "a.h5ad", names, ["GENE1", "GENE2"], "log1p_cp10k")


READS = {
    "visium": lambda f: visium.read(f, "x"),
    "tables": lambda f: visium.read(f, "x"),
    "hd": lambda f: visium_hd.read(f, "x", 8.0),
    "xenium": lambda f: xenium.read(f, "x", 50.0),
    "stimage": lambda f: [stimage.read(f, n, *a) for n, a in stimage.slides(f, "breast").items()],
    "hest1k": lambda f: [hest1k.read(f, n, a) for n, a in hest1k.slides(f).items()],
    "trident": lambda f: to_predict(f / "A1.h5", um_per_px=UM_PER_PX),
    "clam": lambda f: to_predict(f / "A1.h5", um_per_px=UM_PER_PX, patch_px=512.0),
    "zarr 2": lambda f: h5ad.read(f / "a.zarr"),
    "zarr 3": lambda f: h5ad.read(f / "a.zarr"),
    "h5ad": lambda f: h5ad.read(f / "a.h5ad"),
    "h5ad to predict": lambda f: to_predict(f / "a.h5ad"),
    "h5ad, a stack": lambda f: h5ad.read_stack_to_predict(f / "a.h5ad"),
    "h5ad, dense": lambda f: h5ad.read(f / "a.h5ad"),
    "h5ad, counts": counts,
    "h5ad, by columns": counts,
    "anndata zarr": lambda f: h5ad.read(f / "b.zarr"),
    "zarr.zip": lambda f: h5ad.read(f / "b.zarr.zip"),
    "lazyslide": lambda f: np.asarray(spatial_data.open_tiles(f / "s.zarr").embeddings),
    "embeddings": lambda f: embeddings.read(f / "A1.h5"),
    "hest": of_hest,
    "her2st": section,
    "molecules, parquet": lambda f: transcripts.read(f / "s.parquet", "s", 10.0),
    "molecules, csv": lambda f: transcripts.read(f / "s.csv", "s", 10.0),
    "molecules, csv.gz": lambda f: transcripts.read(f / "s.csv.gz", "s", 10.0),
    "geojson": lambda f: labels(read_regions(f / "a.geojson"), np.ones((3, 2))),
    "png": lambda f: image(f / "a.png"),
    "jpeg": lambda f: image(f / "a.jpg"),
    "tiff": lambda f: image(f / "a.tif"),
    "ome": lambda f: image(f / "a.ome.tif"),
    "planes": lambda f: image(f / "a.ome.tif"),
    "arrays": lambda f: load_arrays(f / "a.npz"),
    "json": lambda f: read_json(f / "a.json"),
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, repeated or lost."""
    data, at = bytearray(data), rng.randrange(len(data))
    how = rng.choice(["change", "change", "cut", "repeat", "lose"])
    if how == "change":
        for _ in range(rng.choice([1, 1, 3, 20])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif how == "cut":
        del data[at:]
    elif how == "repeat":
        data[at:at] = data[at : at + rng.randrange(1, 200)]
    else:
        del data[at : at + rng.randrange(1, 50)]
    return bytes(data)


def files(folder: Path) -> list[Path]:
    """Those that are damaged, one at a time."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    return [p for p in found if p.suffix != ".png"] or found


def attempt(folder: Path, kind: str, seed: int) -> str:
    """What comes of a folder with one file damaged: read, refused, or what was raised."""
    rng = random.Random(seed)
    path = rng.choice(files(folder))
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, rng))
    try:
        READS[kind](folder)
        return "read"
    except (InputError, FileNotFoundError) as error:
        named = str(folder) in str(error) or "slide" in str(error)
        return "refused" if named else f"names no file: {error!r}"
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "stfm_jax" in f.filename]
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return f"raised at {at}, {path.name}: {error!r}"[:500].replace("\n", " ")
    finally:
        path.write_bytes(whole)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    warnings.simplefilter("ignore")
    logging.disable()
    assert "jax" not in sys.modules
    for line in sys.stdin:
        kind, _, seed = line.strip().rpartition(" ")
        print(f"began {line.strip()}", flush=True)
        print(attempt(Path(sys.argv[1]) / kind, kind, int(seed)), flush=True)


if __name__ == "__main__":
    main()
