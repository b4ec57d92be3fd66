"""From a slide's H&E patches to its features, kept in files and resumed where it was stopped.

    <cache>/<identity>/<slide>.h5         the embedding, as TRIDENT writes it
    <cache>/<identity>/<slide>.partial    rows of one that is being made: a line of JSON that says
                                          of what, then float32
The identity of the encoder goes with the features wherever they are written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stfm_jax.data import embeddings, fit
from stfm_jax.data.image import release
from stfm_jax.data.slide import Slide
from stfm_jax.encoders.encoder import Encoder
from stfm_jax.errors import InputError
from stfm_jax.runtime import progress
from stfm_jax.runtime.files import file_name

_LOG = logging.getLogger("stfm_jax")


def embed(slide: Slide, encoder: Encoder) -> np.ndarray:
    """Features [n, f] float32 of a slide's patches.

    Raises:
      InputError: the slide has no image, or its patches are unreadable.
    """
    _require_image(slide)
    fit.say_odd(slide)
    return np.concatenate([*_blocks(slide, encoder, 0)])


def embedded(slides: Iterable[Slide], encoders: Sequence[Encoder], cache: str | Path):
    """The slides with features of the encoders, computed once and kept under `cache`.

    Args:
      slides: slides with patches, or whose embeddings are there.
      encoders: one or several.
      cache: folder.

    Returns:
      A list of slides; see `data.feature_blocks` of several encoders.

    Raises:
      InputError: no image, unreadable patches, or an embedding that is not what its name says.
    """
    return [_embedded(slide, encoders, cache) for slide in slides]


def require_images(slides: Iterable[Slide], encoders: Sequence[Encoder], cache: str | Path) -> None:
    """Raises InputError for a slide that `embedded` could give no features."""
    for slide in slides:
        if not all(cache_path(cache, encoder, slide).exists() for encoder in encoders):
            _require_image(slide)


def cache_path(cache: str | Path, encoder: Encoder, slide: Slide) -> Path:
    """Where a slide's embedding is kept."""
    return Path(cache) / encoder.identity / f"{file_name(slide.name)}.h5"


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


def _embedded(slide: Slide, encoders: Sequence[Encoder], cache: str | Path) -> Slide:
    return embeddings.align_all(
        slide, [_kept(slide, encoder, cache_path(cache, encoder, slide)) for encoder in encoders]
    )


def _kept(slide: Slide, encoder: Encoder, path: Path) -> embeddings.Embeddings:
    stored(slide, encoder, path)
    return embeddings.read(path)


def stored(slide: Slide, encoder: Encoder, path: Path) -> embeddings.Embeddings:
    """A slide's embedding in a file, made where it is not there yet; features stay in it.

    Raises:
      InputError: no image, unreadable patches, or a file by another encoder.
    """
    if not path.exists():
        _make(slide, encoder, path)
    found = embeddings.open_stored(path)
    if found.encoder != encoder.identity:
        raise InputError(
            f"{path}: expected an embedding by {encoder.identity!r}, found one by "
            f"{found.encoder!r}; give another folder by --config.encoder.dir."
        )
    return found


def _make(slide: Slide, encoder: Encoder, path: Path) -> None:
    """Writes the embedding, going on with what is in the partial file."""
    _require_image(slide)
    fit.say_odd(slide)
    start = time.monotonic()
    with _rows_file(path.with_suffix(".partial")) as file:
        if path.exists():  # another process made it meanwhile
            return
        there = _resumed(file, _about(slide, encoder), 4 * encoder.width)
        for rows in _blocks(slide, encoder, there):
            file.write(np.ascontiguousarray(rows, "<f4").tobytes())
            file.flush()
        features = _read(file, slide.num_spots, encoder.width)
        um_per_px = slide.um_per_px or slide.patches.um_per_px
        embeddings.write(
            path,
            features,
            slide.coords_um / um_per_px,
            slide.barcodes,
            encoder.identity,
            side_px=max(encoder.fields_um) / um_per_px,
            um_per_px=um_per_px,
        )
    rate = (slide.num_spots - there) / max(time.monotonic() - start, 1e-9)
    _LOG.info(
        "%s: %d patches embedded into %s, %.1f a second", slide.name, slide.num_spots, path, rate
    )


def _blocks(slide: Slide, encoder: Encoder, first: int) -> Iterator[np.ndarray]:
    """Features of the spots from the first on, some at a time, with a bar."""
    n = slide.num_spots
    with progress.bar(f"{slide.name}: {encoder.name}", n, "patch", initial=first) as bar:
        for rows in encoder.blocks(slide.patches, np.arange(first, n)):
            yield rows
            bar.update(len(rows))
    release(slide.patches)


def _about(slide: Slide, encoder: Encoder) -> bytes:
    """What the rows of a partial file are of, a line."""
    digest = hashlib.sha256("\n".join(map(str, slide.barcodes)).encode())
    digest.update(np.ascontiguousarray(slide.coords_in, np.float64).tobytes())
    about = {
        "encoder": encoder.identity,
        "width": encoder.width,
        "spots": digest.hexdigest(),
        "um_per_px": slide.patches.um_per_px,
    }
    return json.dumps(about).encode() + b"\n"


@contextlib.contextmanager
def _rows_file(path: Path) -> Iterator[BinaryIO]:
    """The partial file, of this process alone; gone at the end, and after failing without a row."""
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        _lock(file, path)
        try:
            yield file
            path.unlink(missing_ok=True)
        except BaseException:
            file.seek(0)
            file.readline()
            if not file.read(1):
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty
                    for folder in made:
                        folder.rmdir()
            raise


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _LOG.info("%s: another process is embedding this slide; waiting for it", path)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # the file system knows no locks
        return


def _resumed(file: BinaryIO, about: bytes, row_bytes: int) -> int:
    """Whole rows that are there; of anything else the file begins anew."""
    file.seek(0)
    head = file.readline()
    rows = 0
    if head == about:
        rows = (file.seek(0, 2) - len(about)) // row_bytes
        file.truncate(len(about) + rows * row_bytes)
    else:
        file.truncate(0)
        file.write(about)
    file.seek(0, 2)
    return rows


def _read(file: BinaryIO, n: int, width: int) -> np.ndarray:
    """The rows [n, width], mapped."""
    file.seek(0)
    offset = len(file.readline())
    return np.memmap(file, "<f4", "r", offset, (n, width))
