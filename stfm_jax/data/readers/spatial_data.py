"""SpatialData stores, formats 0.1 and 0.2: a table of counts and the shapes that it is of.

    X.zarr/tables/<table>/...      AnnData; uns['spatialdata_attrs']: region, instance_key
    X.zarr/shapes/<region>/...     where its rows lie

    X.zarr/images/<image>/...      the H&E image, of which patches are made

Named is the store, where it has one table, or a table in it, `X.zarr/tables/<table>`. Of the images
that lie in a system of the shapes the finest of three channels is taken. The tables of LazySlide
hold features of tiles, which are embeddings.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import anndata
import numpy as np
import zarr

from stfm_jax.data.embeddings import Embeddings
from stfm_jax.data.image import AS_USUAL, Rules
from stfm_jax.data.image import with_image as on_image
from stfm_jax.data.images import zarr_image
from stfm_jax.data.images.opening import open_image
from stfm_jax.data.readers import h5ad_group, ngff, pitch, shapes, visium, zarr_store
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
_MARK, _TILES = "spatialdata_attrs", "tile_spec"  # attributes of a store; of LazySlide's
_TABLES = ("tables", "table")  # the second of early versions
_BINS = re.compile(r".*square_(\d+)um")
_XENIUM_UM = 0.2125  # of a pixel of the system `global`, where shapes are in micrometres


def load(
    path: str | Path,
    features_key: str = "features",
    counts_layer: str = "counts",
    also: Iterable[str] = (),
) -> anndata.AnnData:
    """The AnnData that a zarr store holds; of SpatialData its table, with `obsm['spatial']`.

    Places are as the shapes have them. Where the array of Visium or the bins of Visium HD say the
    scale it is put into `uns`, and so is the unit of Xenium.

    Raises:
      FileNotFoundError: there is no such store.
      InputError: it is damaged, or it is not said which of its tables is meant.
    """
    with zarr_store.reading(path):
        root, group, name = _opened(path)
        if group is None:
            return zarr_store.load(path, features_key, counts_layer, also)
        return _placed(root, group, name, features_key, counts_layer, also)


def _placed(
    root: Path,
    group: zarr.Group,
    name: str | None,
    features_key: str,
    counts_layer: str,
    also: Iterable[str],
) -> anndata.AnnData:
    """A table with the places of its rows."""
    name = _one_table(root, group, name, lambda _: True)
    columns = (*_keys(group[name]), *also)
    adata = h5ad_group.whole(group[name], features_key, counts_layer, columns)
    region, keys = _region(adata, root / name)
    if region is None:
        return adata
    placed = shapes.read(root, group, region).reindex(keys)
    if placed["x"].isna().any():
        lost = int(placed["x"].isna().sum())
        raise InputError(
            f"{root / name}: {lost} of its {len(keys)} rows (such as {keys[0]!r}) are none of the "
            f"shapes {region!r}; both must be of one store."
        )
    adata.obsm["spatial"] = placed[["x", "y"]].to_numpy()
    _say_scale(adata, group, region)
    return adata


def with_image(slide: Slide, path: str | Path, rules: Rules = AS_USUAL) -> Slide:
    """The slide of a store with patches of the image that lies there; as it is where none does.

    Raises:
      InputError: the store is damaged, or spots lie outside the image.
    """
    with zarr_store.reading(path):
        root, group, name = _opened(path)
        found = None if group is None else _finest(root, group, name)
    if found is None:
        return slide
    image, matrix = found
    _LOG.info("%s: the image %s of its store is taken", slide.where, image.name)
    pixels = slide.coords_in @ matrix[:2, :2].T + matrix[:2, 2]
    step_um = slide.um_per_px if slide.spatial_unit == "pixel" else 1.0
    return on_image(slide, image, rules, pixels, step_um / _enlarged(matrix))


def _finest(root: Path, group: zarr.Group, name: str | None) -> tuple[Path, np.ndarray] | None:
    """Where the image of most pixels lies, and what takes places of the shapes to its pixels."""
    table = _one_table(root, group, name, lambda _: True)
    region = h5ad_group.attributes(group[table], _MARK).get("region")
    if region is None or "images" not in group:
        return None
    shape = group[f"shapes/{np.atleast_1d(region)[0]}"]
    steps = shape.attrs.get("coordinateTransformations", [])
    places = ngff.systems(steps, ("x", "y"), str(root / shape.path))
    found = []
    for image, element in group["images"].groups():
        steps = (zarr_image.multiscale(element) or {}).get("coordinateTransformations", [])
        lies = ngff.systems(steps, ("c", "y", "x"), str(root / element.path))
        shared = [system for system in places if system in lies]
        if shared and _is_coloured(root / "images" / image):
            matrix = np.linalg.solve(lies[shared[0]], places[shared[0]])
            found.append((root / "images" / image, matrix))
    return max(found, key=lambda each: _enlarged(each[1]), default=None)


def _is_coloured(image: Path) -> bool:
    try:
        return bool(open_image(image).levels)
    except InputError:  # of stains, or of one channel
        return False


def _enlarged(matrix: np.ndarray) -> float:
    """Pixels on a step."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def is_tiles(path: str | Path) -> bool:
    """Whether a path names a store of LazySlide, or a table in one."""
    if not zarr_store.is_store(path) or not Path(path).exists():
        return False
    with zarr_store.reading(path):
        _, group, _ = _opened(path)
        return group is not None and _TILES in group.attrs


def open_tiles(path: str | Path) -> Embeddings:
    """The features that LazySlide made of tiles, with these; read whole.

    Args:
      path: of a store with one table of features, or of a table, `X.zarr/tables/<model>_tiles`.

    Raises:
      FileNotFoundError, InputError: as `load`.
    """
    with zarr_store.reading(path):
        root, group, name = _opened(path)
        if group is None:
            raise InputError(f"{path}: expected a store of LazySlide, found another.")
        return _tiles(root, group, name)


def _tiles(root: Path, group: zarr.Group, name: str | None) -> Embeddings:
    """The features of a table with the tiles that they are of."""
    tiles = set(group.attrs.get(_TILES, {}))
    name = _one_table(root, group, name, lambda table: any(table.endswith(f"_{t}") for t in tiles))
    adata = h5ad_group.whole(group[name], "", "", _keys(group[name]))
    region, keys = _region(adata, root / name)
    if region is None or adata.X is None:
        raise InputError(f"{root / name}: expected features of tiles, found none.")
    placed = shapes.read(root, group, region).reindex(keys)
    sides = placed["width"].dropna().unique()
    if placed["x"].isna().any() or not np.allclose(sides, sides[:1]):
        raise InputError(
            f"{root / name}: expected a tile of one size among the shapes {region!r} for every row."
        )
    features = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    properties = group.attrs.get("slide_properties", {})
    scale = properties.get("mpp") if isinstance(properties, dict) else None
    return Embeddings(
        embeddings=np.asarray(features, np.float32),
        coords=placed[["left", "top"]].to_numpy(),
        barcodes=None,
        encoder=Path(name).name.removesuffix(f"_{region}"),
        source=str(root),
        side_px=float(sides[0]),
        um_per_px=float(scale) if isinstance(scale, int | float) and scale > 0 else None,
    )


def _opened(path: str | Path) -> tuple[Path, zarr.Group | None, str | None]:
    """The root of a store, open, and the table in it that is named; None of other stores."""
    root = zarr_store.root_of(path)
    name = str(Path(path).relative_to(root)) if root != Path(path) else None
    group = zarr_store.open_group(root)
    marked = _MARK in group.attrs or (any(t in group for t in _TABLES) and "obs" not in group)
    if marked and root.is_file():
        raise InputError(f"{root}: unpack the archive; of SpatialData a folder .zarr is read.")
    return root, group if marked else None, name


def _one_table(root: Path, group: zarr.Group, name: str | None, fits) -> str:
    """The table that is named, or the only one that fits."""
    there = [f"{folder}/{table}" for folder in _TABLES if folder in group for table in
             sorted(group[folder].group_keys())]  # fmt: skip
    if name is not None:
        if name in there:
            return name
        raise InputError(f"{root}: has no {name}; it has {', '.join(there) or 'no tables'}.")
    fitting = [table for table in there if fits(Path(table).name)]
    if len(fitting) != 1:
        choose = f"; name one, as {root / fitting[0]}" if fitting else ""
        raise InputError(
            f"{root}: expected one table, found {len(fitting)} ({', '.join(there) or 'none'})"
            f"{choose}."
        )
    return fitting[0]


def _keys(table: zarr.Group) -> tuple[str, ...]:
    """Columns of a table by which its rows are known."""
    said = h5ad_group.attributes(table, _MARK)
    return tuple(str(said[key]) for key in ("region_key", "instance_key") if key in said)


def _region(adata: anndata.AnnData, where: Path) -> tuple[str | None, list[str]]:
    """The shapes that rows are of, and each row's among them; None where the table says nothing."""
    said = adata.uns.get(_MARK)
    if not isinstance(said, dict) or said.get("region") is None:
        return None, []
    regions = [str(each) for each in np.atleast_1d(said["region"])]
    if len(regions) > 1:
        raise InputError(
            f"{where}: expected one slide, found rows of {len(regions)} regions "
            f"({', '.join(regions[:4])}); write a store for each."
        )
    key = str(said.get("instance_key"))
    if key not in adata.obs:
        raise InputError(f"{where}: expected obs[{key!r}], which says the shape of each row.")
    return regions[0], [str(each) for each in adata.obs[key]]


def _say_scale(adata: anndata.AnnData, group: zarr.Group, region: str) -> None:
    """Puts the unit, and micrometres per pixel, into `uns` where the store knows them."""
    if "spatial_unit" in adata.uns:
        return
    array = {"array_col", "array_row"} <= set(adata.obs)
    bins = _BINS.fullmatch(region)
    if array:
        step = (float(bins.group(1)),) * 2 if bins else visium.STEP_UM
        places = adata.obs[["array_col", "array_row"]].to_numpy(np.float64)
        try:
            per_um, _ = pitch.similarity(places * step, adata.obsm["spatial"], "", "", True)
        except InputError:  # of another array: to be asked for
            return
        adata.uns["spatial_unit"] = "pixel"
        adata.uns.setdefault("um_per_px", 1.0 / per_um)
    elif _in_um(group, region):
        adata.uns["spatial_unit"] = "um"


def _in_um(group: zarr.Group, region: str) -> bool:
    """Whether shapes are Xenium's: scaled from micrometres to its pixels."""
    steps = group[f"shapes/{region}"].attrs.get("coordinateTransformations", [])
    scales = [step.get("scale") for step in steps if step.get("type") == "scale"]
    return any(scale and abs(1 / scale[0] - _XENIUM_UM) < 1e-4 for scale in scales)
