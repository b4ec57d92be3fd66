"""From a slide's H&E patches to its features: built-in encoders, names and the cache of embeddings.

The encoder's name carries the patch size, and goes with the features wherever they are written.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from stfm_jax.data import embeddings
from stfm_jax.data.image import release
from stfm_jax.data.slide import Slide
from stfm_jax.encoders import stain_texture
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
_BLOCK = 16  # patches read and described at a time
BUILT_IN = {"stain_texture": stain_texture.describe}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A built-in encoder at one patch size."""

    kind: str  # key of BUILT_IN
    patch_um: float  # side of the patch, micrometres

    def __post_init__(self):
        if self.kind not in BUILT_IN:
            raise InputError(
                f"config.encoder.name must be one of {', '.join(BUILT_IN)} to be computed here, "
                f"found {self.kind!r}; embeddings of other encoders are read "
                "(docs/data_and_files.md)."
            )

    @property
    def name(self) -> str:
        """Name with patch size, as written beside every embedding."""
        return f"{self.kind}_{self.patch_um:g}um"


def embed(slide: Slide, encoder: Encoder) -> np.ndarray:
    """Features [n, f] float32 of a slide's patches, on all cores.

    Raises:
      InputError: the slide has no image, or its patches are unreadable.
    """
    _require_image(slide)
    describe = BUILT_IN[encoder.kind]
    blocks = [
        np.arange(i, min(i + _BLOCK, slide.num_spots)) for i in range(0, slide.num_spots, _BLOCK)
    ]
    jobs = min(os.cpu_count() or 1, len(blocks))
    with tqdm(blocks, desc=f"embed {slide.name}", unit="block", mininterval=1.0) as bar:
        patches = (slide.patches.read(block, encoder.patch_um) for block in bar)
        described = Parallel(n_jobs=jobs, pre_dispatch="2*n_jobs")(
            delayed(describe)(patch, slide.patches.um_per_px) for patch in patches
        )
    release(slide.patches)
    return np.concatenate(described).astype(np.float32)


def require_images(slides: Iterable[Slide], encoder: Encoder, cache: str | Path) -> None:
    """Raises InputError for a slide that `embedded` could give no features."""
    for slide in slides:
        if not cache_path(cache, encoder, slide).exists():
            _require_image(slide)


def _require_image(slide: Slide) -> None:
    if slide.patches is not None:
        return
    if slide.features is not None:
        raise InputError(
            f"{slide.where}: has no image to embed, but features; use them by "
            "--config.encoder.name=precomputed."
        )
    raise InputError(
        f"{slide.where}: has neither features nor an image to embed; give an embedding in "
        "obsm['features'] or an image."
    )


def embedded(slides: Iterable[Slide], encoder: Encoder, cache: str | Path) -> list[Slide]:
    """The slides with features of the encoder, computed once and kept under `cache`.

    Args:
      slides: slides with patches.
      encoder: which and at what patch size.
      cache: folder; files are `<cache>/<encoder>/<slide>.h5` in the HEST embedding format.
    """
    return [_embedded(slide, encoder, cache_path(cache, encoder, slide)) for slide in slides]


def cache_path(cache: str | Path, encoder: Encoder, slide: Slide) -> Path:
    """Where a slide's embedding is kept."""
    return Path(cache) / encoder.name / f"{slide.name}.h5"


def _embedded(slide: Slide, encoder: Encoder, path: Path) -> Slide:
    if not path.exists():
        features = embed(slide, encoder)
        embeddings.write(path, features, slide.coords_in, slide.barcodes, encoder.name)
        _LOG.info("%s: %d patches embedded into %s", slide.name, slide.num_spots, path)
    return embeddings.align(slide, embeddings.read(path))
