"""Which library opens an image file, and what to say where none does.

PNG and JPEG: Pillow. OME-Zarr: zarr. Slides of scanners' makers: OpenSlide. OME and all other
TIFFs: tifffile, since OpenSlide sees one level of an OME pyramid, one of three grey pages, and no
strips; and Pillow where tifffile as it is installed cannot decode one, or for colours that it alone
converts.
"""

from __future__ import annotations

import os
from pathlib import Path

from stfm_jax.data.images import openslide_image, pillow_image, zarr_image
from stfm_jax.data.images.image import MAX_GIB, SlideImage, Unreadable
from stfm_jax.data.images.openslide_image import GENERIC, OpenSlideImage
from stfm_jax.data.images.pillow_image import PillowImage
from stfm_jax.data.images.tiff_image import TiffImage, of_several_pages
from stfm_jax.data.images.zarr_image import ZarrImage
from stfm_jax.errors import InputError

EXTRA = "pip install 'stfm_jax[slides]'"
_PLAIN = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_TIFF = (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi", ".scn", ".bif", ".qptiff", ".svslide")
_MAKERS = (".mrxs", ".czi", ".dcm", ".vms", ".vmu")  # and no TIFF
_CONVERT = (".isyntax", ".vsi", ".zvi", ".lif", ".nd2", ".jp2", ".j2k", ".jxl", ".kfb", ".sdpc")
SUFFIXES = (*_PLAIN, *_TIFF, *_MAKERS, *_CONVERT)
_HOW = (
    "convert it to a pyramidal OME-TIFF, in QuPath by File > Export images > OME TIFF, or by "
    "`bfconvert -tilex 512 -tiley 512 -pyramid-resolutions 4 -pyramid-scale 2 FILE OUT.ome.tiff`"
)
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_image(path: str | os.PathLike) -> bool:
    """Whether a path names an image, by its suffix or as OME-Zarr; not whether it can be opened."""
    return Path(path).suffix.lower() in SUFFIXES or zarr_image.is_one(Path(path))


def open_image(path: str | os.PathLike, max_gib: float = MAX_GIB) -> SlideImage:
    """The image in a file, its header read.

    Args:
      path: of the file.
      max_gib: of pixels that are decoded together; `data.max_image_gib`.

    Raises:
      InputError: there is none, nobody opens it, or it is damaged; says what to do.
    """
    path = Path(path)
    if zarr_image.is_one(path):
        return ZarrImage(path)
    if path.is_dir():
        raise InputError(
            f"{path}: expected an image, found a folder; of a slide of several files name one of "
            "them (of DICOM any .dcm, of MIRAX the .mrxs)."
        )
    if not path.is_file():
        raise InputError(f"{path}: expected an image, but there is no such file; check the path.")
    with open(path, "rb") as file:
        head = file.read(4)
    if head in _TIFF_HEADS:
        return _tiff(path, max_gib)
    suffix = path.suffix.lower()
    if suffix in _PLAIN:
        return PillowImage(path, max_gib=max_gib)
    if openslide_image.maker(path):
        return OpenSlideImage(path)
    if suffix in _MAKERS and not openslide_image.installed():
        raise InputError(
            f"{path}: slides like this ({suffix}) are opened by OpenSlide, which is not installed; "
            f"{EXTRA}, or {_HOW}."
        )
    if suffix in _MAKERS:
        raise InputError(
            f"{path}: expected a slide that OpenSlide opens, found one that it does not ({suffix}: "
            f"a file or folder beside it may be missing, or its pixels be JPEG XR); {_HOW}."
        )
    if suffix in _CONVERT:
        raise InputError(f"{path}: no library here opens {suffix}; {_HOW}.")
    return PillowImage(path, max_gib=max_gib)


def _tiff(path: Path, max_gib: float) -> SlideImage:
    maker = openslide_image.maker(path)
    if maker and maker != GENERIC:
        try:
            return OpenSlideImage(path)
        except InputError:
            return _without_openslide(path, max_gib)
    return _without_openslide(path, max_gib, also=maker is not None)


def _without_openslide(path: Path, max_gib: float, also: bool = False) -> SlideImage:
    """By tifffile or Pillow; or after all by OpenSlide, where it opens it `also`."""
    try:
        return TiffImage(path, max_gib)
    except Unreadable as error:
        why = str(error)
    several = of_several_pages(path)
    if also and not several:
        return OpenSlideImage(path)
    if not several and pillow_image.opens(path):  # of several it would read the first as all
        return PillowImage(path, max_gib=max_gib)
    pages = " in several pages" if several else ""
    more = "" if openslide_image.installed() else f"{EXTRA}, or "
    raise InputError(
        f"{path}: expected a TIFF of colours of 8 or 16 bits that can be opened here, found "
        f"{why}{pages}; {more}{_HOW}."
    )
