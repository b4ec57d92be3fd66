"""Folders in exactly the layouts that the platforms release, old and new, written small.

Sources: the vendors' pages and the readers of scanpy, squidpy and spatialdata-io, and the real
files of `real_tissue.platforms_root()`. `write_visium` and others say which version they are of.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import scipy.io
import scipy.sparse as sp
from PIL import Image

from stfm_jax.data.slide import Slide

UM_PER_PX = 0.5
POSITIONS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres",
             "pxl_col_in_fullres"]  # fmt: skip


def visium_slide(name: str = "V1", rows: int = 8, columns: int = 7, num_genes: int = 12) -> Slide:
    """Spots on Visium's lattice with counts that differ from name to name."""
    rng = np.random.default_rng(list(name.encode()))
    row, col = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    array = np.stack([2 * col + row % 2, row], axis=-1).reshape(-1, 2)
    pixels = 250.0 + array * np.array([50.0, 100 * np.sqrt(0.75)]) / UM_PER_PX
    return Slide(
        name=name,
        barcodes=np.array([f"{'ACGT'[i % 4] * 8}{i:08d}-1" for i in range(len(array))]),
        coords_um=pixels * UM_PER_PX,
        coords_in=pixels,
        spatial_unit="pixel",
        counts=sp.csr_matrix(rng.poisson(1.0, (len(array), num_genes)).astype(np.float32)),
        genes=np.array([f"GENE{i}" for i in range(num_genes)]),
    )


def positions(slide: Slide, outside: int = 2) -> pd.DataFrame:
    """Visium's table of positions, in another order, with spots outside the tissue."""
    array = np.round((slide.coords_in - 250) * UM_PER_PX / [50, 100 * np.sqrt(0.75)]).astype(int)
    table = pd.DataFrame(
        np.column_stack([array[:, ::-1], np.round(slide.coords_in[:, ::-1]).astype(int)]),
        columns=POSITIONS[2:],
    )
    table.insert(0, "in_tissue", 1)
    table.insert(0, "barcode", slide.barcodes)
    off = pd.DataFrame(
        [[f"GGGGGGGG{i:08d}-1", 0, 40, i, -1567, 99999] for i in range(outside)], columns=POSITIONS
    )
    return pd.concat([off, table.iloc[::-1]], ignore_index=True)


def write_h5(path: Path, slide: Slide, extra: dict[str, int] | None = None, **attributes) -> None:
    """A matrix of 10x, version 3; `extra` has features by their type, with counts of 1."""
    extra = extra or {}
    counts = sp.csr_matrix(slide.counts)
    others = sum(extra.values())
    stored = sp.hstack([counts, np.ones((counts.shape[0], others))], format="csr")
    types = ["Gene Expression"] * len(slide.genes) + [t for t, n in extra.items() for _ in range(n)]
    names = [*slide.genes, *(f"extra{i}" for i in range(others))]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update({"filetype": "matrix", "version": 2, **attributes})
        group = file.create_group("matrix")
        group["barcodes"] = slide.barcodes.astype("S")
        group["data"] = stored.data.astype(np.int32)
        group["indices"] = stored.indices.astype(np.int64)
        group["indptr"] = stored.indptr.astype(np.int64)
        group["shape"] = np.array(stored.shape[::-1], np.int32)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(len(names))], "S")
        features["name"] = np.array(names, "S")
        features["feature_type"] = np.array(types, "S")
        features["genome"] = np.array(["GRCh38"] * len(names), "S")


def write_mtx(folder: Path, slide: Slide, old: bool = False, prefix: str = "") -> None:
    """The same as a folder of tables; `old`: of Cell Ranger 2, not gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"ENSG{i:011d}" for i in range(len(slide.genes))]
    features = pd.DataFrame({"id": ids, "name": slide.genes})
    if not old:
        features["type"] = "Gene Expression"
    end = "" if old else ".gz"
    table = {"sep": "\t", "header": False, "index": False}
    name = "genes.tsv" if old else "features.tsv"
    features.to_csv(folder / f"{prefix}{name}{end}", **table)
    pd.DataFrame(slide.barcodes).to_csv(folder / f"{prefix}barcodes.tsv{end}", **table)
    opened = open if old else gzip.open
    with opened(folder / f"{prefix}matrix.mtx{end}", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_matrix(slide.counts.T.astype(int)))


def write_scalefactors(path: Path, **more) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {
        "spot_diameter_fullres": 65 / UM_PER_PX,
        "tissue_hires_scalef": 0.15,
        "fiducial_diameter_fullres": 105 / UM_PER_PX,
        "tissue_lowres_scalef": 0.045,
    }
    path.write_text(json.dumps({**said, **more}))


def write_visium(
    outs: Path, slide: Slide, version: int = 2, prefix: str = "", flat: bool = False
) -> Path:
    """A folder `outs` of Space Ranger: 1 has no header, 2 to 4 have one; returns it.

    `flat` and `prefix` are of public downloads, whose files are gzipped where they are flat.
    """
    spatial = outs if flat else outs / "spatial"
    spatial.mkdir(parents=True, exist_ok=True)
    name = "tissue_positions_list.csv" if version == 1 else "tissue_positions.csv"
    end = ".gz" if flat else ""
    path = spatial / f"{prefix}{name}{end}"
    positions(slide).to_csv(path, index=False, header=version > 1)
    write_scalefactors(spatial / f"{prefix}scalefactors_json.json")
    for picture in ("hires", "lowres"):
        Image.new("RGB", (8, 8)).save(spatial / f"{prefix}tissue_{picture}_image.png")
    write_h5(
        outs / f"{prefix}filtered_feature_bc_matrix.h5",
        slide,
        library_ids=np.array([slide.name.encode()]),
        software_version=f"spaceranger-{version}.0.0",
    )
    return outs


def write_image(path: Path, slide: Slide) -> Path:
    """An image that all spots lie in, unlike elsewhere at each."""
    width, height = (slide.coords_in.max(axis=0) + 250).astype(int)
    pixels = np.random.default_rng(0).integers(90, 255, (height // 8 + 1, width // 8 + 1, 3))
    big = Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    big.save(path)
    return path


def hd_slide(name: str = "HD1", side: int = 12, bin_um: float = 8.0, num_genes: int = 12) -> Slide:
    """Bins of a square with counts, a few of them without any."""
    rng = np.random.default_rng(list(name.encode()))
    row, col = (each.ravel() for each in np.meshgrid(range(side), range(side), indexing="ij"))
    # As scanned: rows of the array run along x, and columns against y.
    pixels = np.column_stack([400.0 + row * bin_um, 900.0 - col * bin_um]) / UM_PER_PX
    return Slide(
        name=name,
        barcodes=np.array([f"s_{bin_um:03.0f}um_{r:05d}_{c:05d}-1" for r, c in zip(row, col,
                                                                                strict=True)]),
        coords_um=pixels * UM_PER_PX,
        coords_in=pixels,
        spatial_unit="pixel",
        counts=sp.csr_matrix(rng.poisson(0.3, (len(row), num_genes)).astype(np.float32)),
        genes=np.array([f"GENE{i}" for i in range(num_genes)]),
    )  # fmt: skip


def write_hd(outs: Path, slide: Slide, bin_um: int = 8, matrix: bool = True) -> Path:
    """A folder `outs` of Space Ranger 3 or 4, with bins of one size; returns it."""
    folder = outs / "binned_outputs" / f"square_{bin_um:03d}um"
    (folder / "spatial").mkdir(parents=True, exist_ok=True)
    places = [b.split("_")[2:] for b in slide.barcodes]
    table = pd.DataFrame({
        "barcode": slide.barcodes,
        "in_tissue": 1,
        "array_row": [int(r) for r, _ in places],
        "array_col": [int(c.removesuffix("-1")) for _, c in places],
        "pxl_row_in_fullres": slide.coords_in[:, 1],
        "pxl_col_in_fullres": slide.coords_in[:, 0],
    })  # fmt: skip
    off = table.iloc[:3].assign(in_tissue=0, barcode=[f"s_{bin_um:03d}um_0300{i}_00000-1"
                                                      for i in range(3)])  # fmt: skip
    pd.concat([off, table.iloc[::-1]]).to_parquet(
        folder / "spatial/tissue_positions.parquet", index=False
    )
    write_scalefactors(
        folder / "spatial/scalefactors_json.json",
        spot_diameter_fullres=bin_um / UM_PER_PX,
        bin_size_um=float(bin_um),
        microns_per_pixel=UM_PER_PX,
    )
    if matrix:
        write_h5(folder / "filtered_feature_bc_matrix.h5", slide)
    return outs


CONTROLS = {"Negative Control Probe": 2, "Negative Control Codeword": 1, "Unassigned Codeword": 3,
            "Deprecated Codeword": 1, "Genomic Control": 2}  # fmt: skip
HE_TO_DAPI = np.array([[0.0, -1.25, 2000.0], [1.25, 0.0, 40.0], [0, 0, 1]])  # a quarter turn


def xenium_slide(name: str = "X1", n: int = 60, num_genes: int = 12) -> Slide:
    """Cells at places of their own, in micrometres."""
    rng = np.random.default_rng(list(name.encode()))
    letters = np.array(list("abcdefghijklmnop"))
    ids = ["".join(rng.choice(letters, 8)) + "-1" for _ in range(n)]
    return Slide(
        name=name,
        barcodes=np.array(ids),
        coords_um=rng.uniform(60, 300, (n, 2)),
        counts=sp.csr_matrix(rng.poisson(0.7, (n, num_genes)).astype(np.float32)),
        genes=np.array([f"GENE{i}" for i in range(num_genes)]),
    )


def write_xenium(outs: Path, slide: Slide, version: int = 3, alignment: bool = True) -> Path:
    """A bundle of analysis 1 (ids are integers, or bytes in parquet) to 4; returns its folder."""
    outs.mkdir(parents=True, exist_ok=True)
    said = {"analysis_sw_version": f"xenium-{version}.0.0", "pixel_size": 0.2125}
    (outs / "experiment.xenium").write_text(json.dumps(said))
    ids = [int(b) for b in slide.barcodes] if slide.barcodes[0].isdigit() else list(slide.barcodes)
    if version == 2:
        ids = [each.encode() for each in ids]
    total = np.asarray(slide.counts.sum(axis=1)).ravel().astype(int)
    columns = {
        "cell_id": ids,
        "x_centroid": slide.coords_um[:, 0],
        "y_centroid": slide.coords_um[:, 1],
        "transcript_counts": total,
        "control_probe_counts": 2,
        "control_codeword_counts": 1,
        **({"genomic_control_counts": 2, "unassigned_codeword_counts": 3} if version > 2 else {}),
        "total_counts": total + 3,
        "cell_area": 40.0,
        "nucleus_area": 20.0,
    }
    table = pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)
    pa.parquet.write_table(table, outs / "cells.parquet")
    write_h5(outs / "cell_feature_matrix.h5", slide, CONTROLS if version > 2 else
             {"Negative Control Probe": 2, "Blank Codeword": 1})  # fmt: skip
    if alignment:
        pd.DataFrame(HE_TO_DAPI).to_csv(
            outs / f"{slide.name}_he_imagealignment.csv", header=False, index=False
        )
    return outs
