"""Files of every platform with bytes changed, cut, repeated or lost: read, or refused in words.

No other exception comes out of a reader, whatever the library below raises.
"""

import random

import numpy as np
import platform_layouts as layouts
import pytest
import test_embedding_files
import test_readers_hest1k
import test_readers_spatial_data
import test_readers_stimage

from stfm_jax.data.readers import h5ad, hest1k, inputs, stimage, visium, visium_hd, xenium
from stfm_jax.errors import InputError

TRIES = 60


def _tables(folder):
    slide = layouts.visium_slide()
    outs = layouts.write_visium(folder, slide, 1)
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    layouts.write_mtx(outs / "filtered_feature_bc_matrix", slide, old=True)


def _stimage(folder):
    folder.mkdir()
    test_readers_stimage._write(folder)


def _trident(folder):
    slide = test_embedding_files._slide()
    features = test_embedding_files.toy_slide().features
    test_embedding_files.trident(folder / "A1.h5", slide, features)


def _store(version):
    def write(folder):
        folder.mkdir()
        test_readers_spatial_data._visium(folder / "a.zarr", layouts.visium_slide(), version)

    return write


def _features(folder):
    np.asarray(inputs.read_to_predict(folder / "A1.h5", test_embedding_files.OPTIONS).features)


KINDS = {  # how a folder is written, and read
    "visium": (
        lambda f: layouts.write_visium(f, layouts.visium_slide()),
        lambda f: visium.read(f, "x"),
    ),
    "tables": (_tables, lambda f: visium.read(f, "x")),
    "hd": (
        lambda f: layouts.write_hd(f, layouts.hd_slide()),
        lambda f: visium_hd.read(f, "x", 8.0),
    ),
    "xenium": (
        lambda f: layouts.write_xenium(f, layouts.xenium_slide()),
        lambda f: xenium.read(f, "x", 50.0),
    ),
    "stimage": (
        _stimage,
        lambda f: [stimage.read(f, n, *a) for n, a in stimage.slides(f, "breast").items()],
    ),
    "hest1k": (
        lambda f: test_readers_hest1k._write(f),
        lambda f: [hest1k.read(f, n, a) for n, a in hest1k.slides(f).items()],
    ),
    "trident": (_trident, _features),
    "zarr 2": (_store(2), lambda f: h5ad.read(f / "a.zarr")),
    "zarr 3": (_store(3), lambda f: h5ad.read(f / "a.zarr")),
}


def _damaged(data: bytes, rng: random.Random) -> bytes:
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    write, read = KINDS[kind]
    folder = tmp_path / "given"
    write(folder)
    read(folder)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".png"]
    files = [p for p in files if p.stat().st_size]
    refused = 0
    for seed in range(TRIES):
        rng = random.Random(seed)
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(_damaged(whole, rng))
        try:
            read(folder)
        except (InputError, FileNotFoundError) as error:
            refused += 1
            assert str(folder) in str(error) or "slide" in str(error), "names no file"
        finally:
            path.write_bytes(whole)
    assert refused > TRIES / 10
