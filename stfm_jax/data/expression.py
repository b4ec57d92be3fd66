"""From sparse counts to the dense expression that models see: gene choice and normalisation.

Counts stay sparse until the genes are chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from stfm_jax.data.gene_names import why_none
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

NORMALIZATIONS = ("log1p", "log1p_cp10k")
DISPERSION = 100.0  # theta of the residuals' negative binomial [Lause et al. 2021]
_VARIES = 1e-9  # least variance, beyond rounding


def gene_counts(slide: Slide, genes: Sequence[str]) -> np.ndarray:
    """Raw counts [n, g] float32 of the chosen genes, in their order.

    Raises:
      InputError: as `require_genes`.
    """
    require_genes(slide, genes)
    return np.asarray(slide.counts[:, slide.columns_of(genes)].todense(), dtype=np.float32)


def require_genes(slide: Slide, genes: Sequence[str]) -> None:
    """Raises InputError for a slide that has no counts, or lacks some of the genes."""
    if slide.counts is None:
        raise InputError(f"{slide.where}: has no counts; training and scoring need them.")
    missing = [gene for gene in genes if gene not in slide.columns]
    if missing:
        raise InputError(
            f"{slide.where}: {len(genes) - len(missing)} of {len(genes)} genes found; missing "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Its own look like "
            f"{', '.join(map(str, slide.genes[:3]))}; set --config.data.missing_genes=drop to go "
            "on with genes that every slide has, or leave the slide out."
        )


def library_size(slide: Slide) -> np.ndarray:
    """Total UMI count of each spot over all of the slide's genes, [n] float32, at least 1."""
    return np.maximum(slide.counts.sum(axis=1, dtype=np.float64).A1, 1.0).astype(np.float32)


def normalize(counts, library, normalization: str):
    """`log1p(counts)` or `log1p(counts per 10,000)`; works on NumPy arrays.

    Args:
      counts: [n, g] raw counts.
      library: [n] library sizes (unused by `log1p`).
      normalization: one of NORMALIZATIONS.
    """
    if normalization == "log1p":
        return np.log1p(counts)
    if normalization == "log1p_cp10k":
        return np.log1p(counts * (1e4 / library[:, None]))
    raise InputError(
        f"normalization must be one of {', '.join(NORMALIZATIONS)}, found {normalization!r}."
    )


def expression(slide: Slide, genes: Sequence[str], normalization: str) -> np.ndarray:
    """Normalised expression [n, g] float32 of the chosen genes."""
    return normalize(gene_counts(slide, genes), library_size(slide), normalization).astype(
        np.float32
    )


def pearson_residuals(slide: Slide, genes: Sequence[str]) -> np.ndarray:
    """How far counts lie from what a spot's library size alone makes expect, [n, g] float32.

    (c - m) / sqrt(m + m^2 / theta), m a gene's share of the slide times the spot's library size,
    clipped at sqrt(n) (Lause, Berens and Kobak 2021). What logarithms keep of depth and cellularity
    is taken out.
    """
    counts, library = gene_counts(slide, genes).astype(np.float64), library_size(slide)
    mean = library[:, None] * (counts.sum(axis=0) / library.sum(dtype=np.float64))
    spread = np.sqrt(mean + mean**2 / DISPERSION)
    most = np.sqrt(slide.num_spots)
    residuals = (counts - mean) / np.where(spread > 0, spread, 1.0)
    return np.clip(residuals, -most, most).astype(np.float32)


def _common(slides: Sequence[Slide]) -> list[str]:
    """Genes of every slide, by name.

    Raises:
      InputError: there are none.
    """
    common = sorted(set.intersection(*(set(slide.columns) for slide in slides)))
    if not common:
        raise InputError(f"no gene is in all slides: {why_none(slides)}.")
    return common


def most_expressed_genes(
    slides: Sequence[Slide], num_genes: int, also_in: Sequence[Slide] = ()
) -> list[str]:
    """The genes of most counts over all slides, among those present in every one; ties by name.

    For the arguments see `most_variable_genes`.
    """
    common = _common([*slides, *also_in])
    total = np.zeros(len(common))
    for slide in slides:
        of_slide = slide.counts.sum(axis=0, dtype=np.float64).A1
        total += of_slide[slide.columns_of(common)]
    order = np.argsort(-total, kind="stable")[:num_genes]
    return [common[i] for i in order if total[i] > 0]


def most_variable_counts(
    slides: Sequence[Slide], genes: Sequence[str], num_genes: int
) -> list[str]:
    """Those of some genes whose log1p(counts) vary most over all spots.

    Raises:
      InputError: none of them varies.
    """
    logged = np.log1p(np.concatenate([gene_counts(slide, genes) for slide in slides]))
    variance = logged.var(axis=0)
    if not len(genes) or variance.max() < _VARIES:
        raise InputError(
            f"{slides[0].where}: none of {len(genes)} genes that all {len(slides)} slides share "
            "varies between spots; give raw counts of more genes."
        )
    order = np.argsort(-variance, kind="stable")[:num_genes]
    return [genes[i] for i in order if variance[i] >= _VARIES]


def most_variable_genes(
    slides: Sequence[Slide], num_genes: int, also_in: Sequence[Slide] = ()
) -> list[str]:
    """The genes of highest variance of log1p(counts per 10,000) over all spots of the slides.

    Among genes present in every slide and detected in more than a tenth of the spots (so that
    the ranking is the same whatever normalisation the model uses). Ties go by name.

    Args:
      slides: that genes are chosen on.
      num_genes: how many.
      also_in: slides that must have the genes too; their counts are not looked at.

    Raises:
      InputError: there are not so many.
    """
    common = _common([*slides, *also_in])
    blocks = []
    for slide in slides:
        counts = slide.counts[:, slide.columns_of(common)]
        blocks.append(sp.diags(1e4 / library_size(slide)) @ counts)
    pooled = sp.csc_matrix(sp.vstack(blocks))
    detected = np.diff(pooled.indptr) / pooled.shape[0]
    logged = pooled.log1p()
    mean = np.asarray(logged.mean(axis=0)).ravel()
    variance = np.asarray(logged.multiply(logged).mean(axis=0)).ravel() - mean**2
    variance[detected <= 0.1] = -1.0
    order = np.argsort(-variance, kind="stable")[:num_genes]
    if len(order) < num_genes or variance[order[-1]] < 0:
        raise InputError(
            f"wanted {num_genes} variable genes, but only {int((variance >= 0).sum())} are in all "
            f"{len(slides)} training slides and detected in over 10 % of their spots; lower "
            "--config.data.num_genes, or leave out the slides that lack them."
        )
    return [common[i] for i in order]
