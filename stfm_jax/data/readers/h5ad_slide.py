"""The slide that an AnnData object holds, wherever the object comes from.

Shared by the readers of files (`h5ad.py`) and of HEST (`hest.py`); `h5ad_elements.py` knows the
elements one by one.
"""

from __future__ import annotations

from typing import Literal

import anndata

from stfm_jax.data import feature_blocks, feature_store
from stfm_jax.data.labels import domains
from stfm_jax.data.readers import h5ad_elements as elements
from stfm_jax.data.readers.joined import require_one_slide
from stfm_jax.data.readers.places import coordinates
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError


def slide_from_anndata(
    adata: anndata.AnnData,
    *,
    name: str,
    source: str = "",
    features_key: str = "features",
    counts_layer: str = "counts",
    spatial_unit: str | None = None,
    um_per_px: float | None = None,
    expression: Literal["required", "if measured", "ignored"] = "required",
    tissue_mask: bool = True,
    features: feature_store.StoredFeatures | None = None,
    fields: Literal["data", "predict"] = "data",
    labels_key: str = "",
) -> Slide:
    """The slide that an AnnData object holds.

    Read: `obsm['spatial']` [n, 2]; `obsm[features_key]` [n, f] and `uns['encoder']`, or of several
    encoders `obsm['features_<name>']` and `uns['encoders']`; counts;
    `obs['in_tissue']`, `obs['patient']`, `obs['section']`, `obs['parent']`; `z_um` in `obs` or
    `uns` (a number, or one for each section's name); `obsm['spatial3d']` [n, 3], places in the
    frame of the section's stack and its height, micrometres.

    Args:
      features_key: key of the embedding in `obsm`. The default may be absent (features None).
      counts_layer: layer with raw counts; where the default is absent, `X` is taken.
      spatial_unit: `um` or `pixel`, over `uns['spatial_unit']`.
      um_per_px: micrometres per pixel where the unit is pixels, over `uns['um_per_px']`.
      expression: whether counts must be there, are read where the section was measured (see
        `h5ad.read_stack_to_predict`), or are not looked at, and `X` may be anything.
      tissue_mask: drop the spots that `obs['in_tissue']` puts outside the tissue.
      features: of the spots of adata, instead of what is in its `obsm`.
      labels_key: column of `obs` with a pathologist's labels, where the slide has it; "": none.
      fields: section of the config that `spatial_unit` and `um_per_px` come from, for messages.

    Raises:
      InputError: something needed is absent or wrong; the message says where and what to do.
    """
    where = f"slide {name!r}" + (f" ({source})" if source else "")
    if adata.n_obs == 0:
        raise InputError(f"{where}: has no spots; write the file again, or leave it out.")
    if "spatial" not in adata.obsm:
        raise InputError(
            f"{where}: expected spot coordinates in obsm['spatial'], found obsm keys "
            f"{elements.listed(adata.obsm)}; store [n, 2] coordinates there."
        )
    elements.check_matrices(adata, where)
    inside = elements.in_tissue(adata, where, fields) if tissue_mask else None
    if inside is not None:
        adata = adata[inside].copy()
        features = None if features is None else features.take(inside)
    require_one_slide(adata, where)
    unit = elements.spatial_unit(spatial_unit, adata, where, fields)
    coords = coordinates(adata, where)
    scale = elements.um_per_px(um_per_px, adata, where, fields) if unit == "pixel" else 1.0
    features = elements.embedding(adata, features_key, where) if features is None else features
    several = {}
    if features is None:
        several = elements.embeddings_by_encoder(adata, features_key, where)
    counts, genes = _EXPRESSION[expression](adata, counts_layer, where)
    registered_um, z_um = elements.place(adata, where)
    slide = Slide(
        name=name,
        barcodes=adata.obs_names.to_numpy().astype(str),
        coords_um=coords * scale,
        coords_in=coords,
        spatial_unit=unit,
        counts=counts,
        genes=genes,
        features=features,
        encoder=elements.encoder(adata) if features is not None else None,
        patient=elements.label(adata, "patient", where),
        section=elements.label(adata, "section", where),
        z_um=z_um,
        registered_um=registered_um,
        parent=adata.obs["parent"].astype(str).to_numpy() if "parent" in adata.obs else None,
        domains=domains(adata.obs[labels_key]) if labels_key in adata.obs else None,
        source=source,
    )
    return feature_blocks.joined(slide, several) if several else slide


_EXPRESSION = {
    "required": elements.raw_counts,
    "if measured": elements.counts_if_measured,
    "ignored": lambda *_: (None, None),
}
