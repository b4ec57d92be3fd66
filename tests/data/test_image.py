"""Image patches: crops, edges, memory, HEST patch files, and files that are no images."""

import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from real_tissue import her2st_root

from stfm_jax.data.image import H5Patches, ImagePatches, release
from stfm_jax.data.slide import SubsetPatches
from stfm_jax.errors import InputError


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png", pixels


def test_crop_is_centred(picture):
    path, pixels = picture
    patches = ImagePatches(path, np.array([[30.0, 20.0], [10.4, 40.6]]), um_per_px=0.5)
    got = patches.read(np.array([1, 0]), size_um=5.0)
    assert got.shape == (2, 10, 10, 3) and got.dtype == np.uint8
    np.testing.assert_array_equal(got[1], pixels[15:25, 25:35])
    np.testing.assert_array_equal(got[0], pixels[36:46, 5:15])


def test_edges_are_reflected(picture):
    path, pixels = picture
    patch = ImagePatches(path, np.array([[1.0, 59.0]]), 1.0).read([0], 8)[0]
    padded = np.pad(pixels, ((10, 10), (10, 10), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(patch, padded[10 + 55 : 10 + 63, 10 - 3 : 10 + 5])
    huge = ImagePatches(path, np.array([[40.0, 30.0]]), 1.0).read([0], 300)[0]
    padded = np.pad(pixels, ((150, 150), (150, 150), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(huge, padded[30 : 30 + 300, 40 : 40 + 300])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_and_tiff(tmp_path, picture, mode):
    path = tmp_path / "b.tif"
    image = Image.open(picture[0]).convert(mode)
    image.save(path)
    got = ImagePatches(path, np.array([[40.0, 30.0]]), 1.0).read([0], 20)[0]
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB"))[20:40, 30:50])


def test_decoded_lazily_once_and_freed(picture, monkeypatch):
    from stfm_jax.data.images import pillow_image as module

    path, _ = picture
    calls = []
    decode = module._decode
    monkeypatch.setattr(module, "_decode", lambda image: calls.append(1) or decode(image))
    patches = ImagePatches(path, np.array([[30.0, 20.0]]), 1.0)
    assert not calls
    first = patches.read([0], 4)
    patches.read([0], 4)
    assert len(calls) == 1
    release(SubsetPatches(patches, np.array([0])))
    np.testing.assert_array_equal(patches.read([0], 4), first)
    assert len(calls) == 2
    with patches:
        patches.read([0], 4)
    assert patches.image._open is None and len(calls) == 2
    patches.read([0], 4)
    assert pickle.loads(pickle.dumps(patches)).image._open is None
    release(None)


def test_spots_outside_say_how_many(picture):
    path, _ = picture
    coords = np.array([[10.0, 10.0], [10.0, 79.0], [-1.0, 5.0], [np.nan, 1.0]])
    with pytest.raises(
        InputError, match=r"3 of 4 spots lie outside the image of 80 x 60.*\(y, x\)"
    ):
        ImagePatches(path, coords, 1.0)
    with pytest.raises(InputError, match=r"expected pixel coordinates \[n, 2\]"):
        ImagePatches(path, np.zeros((4, 3)), 1.0)
    with pytest.raises(InputError, match="per pixel must be between"):
        ImagePatches(path, np.ones((1, 2)), 0.0)
    with pytest.raises(InputError, match="less than one pixel"):
        ImagePatches(path, np.ones((1, 2)), 1.0).read([0], 0.1)
    with pytest.raises(InputError, match="from 0 to 0"):
        ImagePatches(path, np.ones((1, 2)), 1.0).read([1], 4)


def test_missing_empty_and_damaged_images(tmp_path, picture):
    coords = np.ones((1, 2))
    with pytest.raises(InputError, match="no such file"):
        ImagePatches(tmp_path / "none.jpg", coords, 1.0)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InputError, match="empty or damaged"):
        ImagePatches(tmp_path / "empty.jpg", coords, 1.0)
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(InputError, match="empty or damaged"):
        ImagePatches(tmp_path / "text.jpg", coords, 1.0)
    for suffix in ("jpg", "png"):
        whole = tmp_path / f"whole.{suffix}"
        Image.open(picture[0]).save(whole)
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(InputError, match="empty or damaged"):
            ImagePatches(cut, coords, 1.0).read([0], 4)
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="8-bit"):
        ImagePatches(tmp_path / "deep.png", coords, 1.0)


def test_large_images_open_and_the_limit_of_pillow_stays(tmp_path, monkeypatch):
    Image.new("1", (200, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    patches = ImagePatches(tmp_path / "a.png", np.ones((1, 2)), 1.0)  # Pillow alone would raise
    assert patches.width == 200 and Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(
        InputError, match=r"200 x 200 pixels, .* take 0.000112 GiB, .*max_image_gib"
    ):
        ImagePatches(tmp_path / "a.png", np.ones((1, 2)), 1.0, max_gib=1e-4)


@pytest.fixture
def patch_file(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (9, 224, 224, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["img"] = images
    return tmp_path / "a.h5", images


def test_h5_patches_rows_and_crop(patch_file):
    path, images = patch_file
    patches = H5Patches(path, np.array([7, 0, 1, 2, 5]))
    np.testing.assert_array_equal(patches.read([4, 0, 0, 2, 1], 112), images[[5, 7, 7, 1, 0]])
    crop = patches.read([1, 3], 50)
    np.testing.assert_array_equal(crop, images[[0, 2], 62:162, 62:162])
    assert patches.read([], 112).shape == (0, 224, 224, 3)


def test_h5_patches_bad_input(patch_file, tmp_path):
    path, _ = patch_file
    with pytest.raises(InputError, match=r"112 um wide \(224 pixels\), but 113 um"):
        H5Patches(path, np.arange(3)).read([0], 113)
    with pytest.raises(InputError, match="from 0 to 8, found 0 to 9"):
        H5Patches(path, np.arange(10))
    with pytest.raises(FileNotFoundError, match="no such file"):
        H5Patches(tmp_path / "none.h5", np.arange(1))
    (tmp_path / "empty.h5").touch()
    with pytest.raises(InputError, match=r"empty.h5.*HDF5"):
        H5Patches(tmp_path / "empty.h5", np.arange(1))
    with h5py.File(tmp_path / "grey.h5", "w") as file:
        file["img"] = np.zeros((3, 8, 8))
    with pytest.raises(InputError, match=r"grey.h5.*uint8"):
        H5Patches(tmp_path / "grey.h5", np.arange(1))


@pytest.mark.slow
@pytest.mark.skipif(her2st_root() is None, reason="her2st is not here")
def test_92_megapixels_need_less_than_2_gib():
    code = """
import sys
from benchmarks.harness import host_peak_gib
from stfm_jax.data.readers import her2st
slide = her2st.read(sys.argv[1], "C2")
patches = slide.patches.read(range(slide.num_spots), 112.0)
assert slide.patches.width * slide.patches.height > 90e6 and patches.std() > 10
print(host_peak_gib())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(her2st_root())],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert float(done.stdout) < 2.0
