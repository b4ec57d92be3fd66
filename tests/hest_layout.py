"""A folder in exactly the layout of HEST-bench, made from slides.

HEST-bench is gated and cannot be shipped, so this stands in for it in the tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

from stfm_jax.data import embeddings
from stfm_jax.data.slide import Slide

PATCH_PX, PATCH_UM = 224, 112.0


def toy_slide(name: str = "A1", n: int = 20, num_genes: int = 12, width: int = 5) -> Slide:
    """A small square lattice of 100 um with counts and features that differ from name to name."""
    rng = np.random.default_rng(list(name.encode()))
    side = int(np.ceil(np.sqrt(n)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[:n]
    return Slide(
        name=name,
        barcodes=np.array([f"{name}-{i:04d}" for i in range(n)]),
        coords_um=100.0 * (grid + 1.0),
        counts=sp.csr_matrix(rng.poisson(1.0, (n, num_genes)).astype(np.float32)),
        genes=np.array([f"GENE{i}" for i in range(num_genes)]),
        features=rng.normal(size=(n, width)).astype(np.float32),
        encoder="toy_112um",
    )


def write_task(
    root: Path,
    task: str,
    slides: Sequence[Slide],
    genes: Sequence[str],
    *,
    um_per_px: float | None = None,
    patches: bool = True,
    without_patch: int = 0,
    index_column: bool = False,
) -> Path:
    """Writes a task, leave one slide out; returns its folder.

    Args:
      um_per_px: of the slide image; of the slide's patches by default (0.5 without patches).
      without_patch: so many spots at the end of each slide get no patch, as off-tissue spots.
      index_column: write the split tables with pandas's unnamed index column.
    """
    folder = root / task
    for name in ("splits", "adata", "patches"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "var_50genes.json").write_text(json.dumps({"genes": list(genes)}))
    for slide in slides:
        scale = um_per_px or (slide.patches.um_per_px if slide.patches else 0.5)
        _write_adata(folder / "adata" / f"{slide.name}.h5ad", slide, scale)
        if patches:
            kept = np.arange(slide.num_spots - without_patch)
            _write_patches(folder / "patches" / f"{slide.name}.h5", slide, kept, scale)
    for i, held_out in enumerate(slides):
        train = [slide for slide in slides if slide is not held_out]
        for part, names in (("train", train), ("test", [held_out])):
            rows = [[s.name, f"patches/{s.name}.h5", f"adata/{s.name}.h5ad"] for s in names]
            table = pd.DataFrame(rows, columns=["sample_id", "patches_path", "expr_path"])
            table.to_csv(folder / "splits" / f"{part}_{i}.csv", index=index_column)
    return folder


def write_embeddings(embed_root: Path, task: str, encoder: str, slides: Sequence[Slide]) -> None:
    """Writes the slides' features as the HEST code does: no encoder's name, barcodes [n, 1]."""
    for slide in slides:
        path = embed_root / task / encoder / "fp32" / f"{slide.name}.h5"
        embeddings.write(path, slide.features, slide.coords_in, slide.barcodes, encoder)
        with h5py.File(path, "r+") as file:
            del file.attrs["encoder"]


def _write_adata(path: Path, slide: Slide, um_per_px: float) -> None:
    """Raw counts in a dense X, pixels in obsm, Space Ranger's left-over in_tissue."""
    adata = anndata.AnnData(
        slide.counts.toarray().astype(np.float32),
        obs=pd.DataFrame({"in_tissue": 0}, index=slide.barcodes),
        var=pd.DataFrame(index=slide.genes),
        obsm={"spatial": slide.coords_um / um_per_px},
    )
    scale = {"spot_diameter_fullres": 55 / um_per_px, "tissue_downscaled_fullres_scalef": 0.1}
    image = {"downscaled_fullres": np.zeros((8, 8, 3), np.uint8)}
    adata.uns["spatial"] = {"ST": {"images": image, "scalefactors": scale}}
    adata.write_h5ad(path)


def _write_patches(path: Path, slide: Slide, kept: np.ndarray, um_per_px: float) -> None:
    """Patches of 224 pixels at 0.5 um; coords are (y, x) centres as in the benchmark."""
    if slide.patches is None:
        images = np.random.default_rng(0).integers(
            0, 255, (len(kept), PATCH_PX, PATCH_PX, 3), dtype=np.uint8
        )
    else:
        images = np.stack([_resized(patch) for patch in slide.patches.read(kept, PATCH_UM)])
    barcodes = np.array([b.encode() for b in slide.barcodes[kept]]).reshape(-1, 1)
    with h5py.File(path, "w") as file:
        file.create_dataset("img", data=images, chunks=True)
        file.create_dataset("coords", data=(slide.coords_um[kept, ::-1] / um_per_px).astype(int))
        file.create_dataset("barcode", data=barcodes)
        factor = 0.5 / um_per_px
        file["img"].attrs.update(
            {"patch_size": round(PATCH_PX * factor), "downsample": 1.0, "factor": factor}
        )


def _resized(patch: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(patch).resize((PATCH_PX, PATCH_PX), Image.Resampling.LANCZOS))
