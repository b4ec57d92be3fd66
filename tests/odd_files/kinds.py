"""A small valid folder of every kind that is read, to be damaged; `reads.READS` reads them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import sys
import warnings
import zipfile
from pathlib import Path

import anndata
import hest_layout
import numpy as np
import platform_layouts as layouts
import scipy.sparse as sp
import slide_files
from bad_input import write_her2st
from PIL import Image

from stfm_jax.data import embeddings
from stfm_jax.data.readers import h5ad
from stfm_jax.runtime.files import save_arrays, write_json

sys.path.append(str(Path(__file__).parents[1] / "data"))
import test_embedding_files
import test_readers_hest1k
import test_readers_spatial_data
import test_readers_stimage
import test_readers_transcripts


def tables(folder):
    slide = layouts.visium_slide()
    outs = layouts.write_visium(folder, slide, 1)
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    layouts.write_mtx(outs / "filtered_feature_bc_matrix", slide, old=True)


def features(write):
    def make(folder):
        slide = test_embedding_files._slide()
        write(folder / "A1.h5", slide, hest_layout.toy_slide().features)

    return make


def store(version):
    return lambda folder: test_readers_spatial_data._visium(
        folder / "a.zarr", layouts.visium_slide(), version
    )


def slide_file(change=lambda adata: adata, sections: bool = False):
    """A slide as AnnData, changed."""

    def make(folder):
        slide = hest_layout.toy_slide()
        h5ad.write(dataclasses.replace(slide, patient="P", section="S"), folder / "a.h5ad")
        adata = anndata.read_h5ad(folder / "a.h5ad")
        if sections:
            adata.obs["section"] = np.where(np.arange(adata.n_obs) < 10, "A", "B")
        adata = change(adata) or adata
        adata.write_h5ad(folder / "a.h5ad", compression="gzip" if sections else None)

    return make


def dense(adata):
    adata.X = adata.X.toarray()


def by_columns(adata):
    adata.X = sp.csc_matrix(adata.X)


def anndata_store(packed):
    def make(folder):
        slide_file()(folder)
        adata = anndata.read_h5ad(folder / "a.h5ad")
        (folder / "a.h5ad").unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_zarr(folder / "b.zarr")
        if packed:
            with zipfile.ZipFile(folder / "b.zarr.zip", "w") as archive:
                for path in (folder / "b.zarr").rglob("*"):
                    if path.is_file():
                        archive.write(path, path.relative_to(folder / "b.zarr"))
                        path.unlink()

    return make


def hest(folder):
    slides = [hest_layout.toy_slide(name) for name in ("A1", "B1")]
    hest_layout.write_task(folder, "IDC", slides, list(slides[0].genes[:4]))
    hest_layout.write_embeddings(folder / "embed", "IDC", "uni", slides)


def own_embeddings(folder):
    slide = hest_layout.toy_slide()
    embeddings.write(folder / "A1.h5", slide.features, slide.coords_um, slide.barcodes, "toy")


def molecules(folder):
    return test_readers_transcripts._molecules(300)


def pixels():
    return np.random.default_rng(0).integers(0, 255, (160, 200, 3), dtype=np.uint8)


def geojson(folder):
    ring = [[0, 0], [0, 9], [9, 9], [9, 0], [0, 0]]
    shapes = [
        {"type": "Polygon", "coordinates": [ring, ring]},
        {"type": "MultiPolygon", "coordinates": [[ring], [ring]]},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [ring]}]},
    ]
    about = {"classification": {"name": "Tumour"}, "name": "a"}
    found = [{"type": "Feature", "geometry": s, "properties": about} for s in shapes]
    text = json.dumps({"type": "FeatureCollection", "features": found})
    (folder / "a.geojson").write_text(text)


WRITES = {
    "visium": lambda f: layouts.write_visium(f, layouts.visium_slide()),
    "tables": tables,
    "hd": lambda f: layouts.write_hd(f, layouts.hd_slide()),
    "xenium": lambda f: layouts.write_xenium(f, layouts.xenium_slide()),
    "stimage": test_readers_stimage._write,
    "hest1k": test_readers_hest1k._write,
    "trident": features(test_embedding_files.trident),
    "clam": features(test_embedding_files.clam),
    "zarr 2": store(2),
    "zarr 3": store(3),
    "h5ad": slide_file(),
    "h5ad to predict": slide_file(sections=False),
    "h5ad, a stack": slide_file(sections=True),
    "h5ad, dense": slide_file(dense),
    "h5ad, counts": slide_file(),
    "h5ad, by columns": slide_file(by_columns),
    "anndata zarr": anndata_store(packed=False),
    "zarr.zip": anndata_store(packed=True),
    "lazyslide": lambda f: test_readers_spatial_data._lazyslide(f / "s.zarr"),
    "embeddings": own_embeddings,
    "hest": hest,
    "her2st": lambda f: write_her2st(f, "A1"),
    "molecules, parquet": lambda f: molecules(f).to_parquet(f / "s.parquet"),
    "molecules, csv": lambda f: molecules(f).to_csv(f / "s.csv", index=False),
    "molecules, csv.gz": lambda f: (f / "s.csv.gz").write_bytes(
        gzip.compress(molecules(f).to_csv(index=False).encode())
    ),
    "geojson": geojson,
    "png": lambda f: Image.fromarray(pixels()).save(f / "a.png", dpi=(508, 508)),
    "jpeg": lambda f: Image.fromarray(pixels()).save(f / "a.jpg"),
    "tiff": lambda f: slide_files.write_tiff(f / "a.tif", pixels(), levels=2),
    "ome": lambda f: slide_files.write_ome(f / "a.ome.tif", pixels(), levels=2),
    "planes": lambda f: slide_files.write_ome(f / "a.ome.tif", pixels(), levels=2, planes=True),
    "arrays": lambda f: save_arrays(f / "a.npz", {"a": {"b": np.arange(30.0)}, "c": np.ones(3)}),
    "json": lambda f: write_json(f / "a.json", {"a": [1, 2.5, None], "b": {"c": "d"}}),
}


def write(root: Path, kind: str) -> Path:
    """The folder of a kind below a root."""
    folder = root / kind
    folder.mkdir(parents=True)
    WRITES[kind](folder)
    return folder
