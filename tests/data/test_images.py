"""Images in all kinds of files: the same pixels, levels and scale; what cannot be opened."""

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import optional
import pytest
import tifffile
from PIL import Image
from real_tissue import her2st_root, platforms_root
from skimage.data import astronaut
from slide_files import ArrayImage, halved, pyramid, write_ome, write_tiff, write_zarr_image

from stfm_jax.data.image import ImagePatches
from stfm_jax.data.images import openslide_image, scale, tiff_image
from stfm_jax.data.images.image import Level, on_background
from stfm_jax.data.images.opening import EXTRA, is_image, open_image
from stfm_jax.data.images.sampling import coarsest, resampled
from stfm_jax.data.readers import her2st
from stfm_jax.encoders.encoder import StainTexture
from stfm_jax.errors import InputError

PLATFORMS = platforms_root()


@pytest.fixture(scope="module")
def pixels():
    return astronaut()[:301, :450]


@pytest.fixture(autouse=True)
def without_openslide(request, monkeypatch):
    """Everything is as in a plain install, but where a test asks for the extra."""
    if "openslide" not in request.fixturenames:
        monkeypatch.setattr(openslide_image, "_library", lambda: None)


@pytest.fixture
def openslide():
    return optional.require("openslide", "test")


KINDS = {
    "pages": lambda path, x: write_tiff(path, x),
    "bigtiff": lambda path, x: write_tiff(path, x, bigtiff=True),
    "planar": lambda path, x: write_tiff(
        path, np.ascontiguousarray(x), levels=1, tile=None, rowsperstrip=16
    ),
    "ome": lambda path, x: write_ome(path, x),
    "ome_planes": lambda path, x: write_ome(path, x, planes=True),
    "ome_deep": lambda path, x: write_ome(path, x, deep=True),
    "ome_deep_planes": lambda path, x: write_ome(path, x, planes=True, deep=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tiff_has_the_pixels_and_the_scale(tmp_path, pixels, kind):
    image = open_image(KINDS[kind](tmp_path / "a.tif", pixels))
    assert isinstance(image, tiff_image.TiffImage)
    assert image.um_per_px == pytest.approx(0.5)
    wanted = pyramid(pixels, len(image.levels))
    for level, array in enumerate(wanted):
        height, width = array.shape[:2]
        assert image.levels[level] == (width, height)
        np.testing.assert_array_equal(image.read(level, 0, 0, width, height), array)
        part = image.read(level, 13, 5, width - 20, 40)
        np.testing.assert_array_equal(part, array[5:45, 13 : width - 7])
    assert kind == "planar" or len(wanted) == 3


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr_has_the_pixels_and_the_scale(tmp_path, pixels, version):
    path = write_zarr_image(tmp_path / "a.zarr", pixels, (), version, unit="micrometer", um=0.5)
    assert is_image(path) and not is_image(tmp_path)
    image = open_image(path)
    assert image.um_per_px == 0.5
    for level, array in enumerate(pyramid(pixels)):
        height, width = array.shape[:2]
        assert image.levels[level] == (width, height)
        np.testing.assert_array_equal(image.read(level, 7, 5, 40, 30), array[5:35, 7:47])
    clear = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    clear[:20, :20, 3] = 0
    image = open_image(write_zarr_image(tmp_path / "b.zarr", clear, (), version))
    assert image.um_per_px is None and (image.read(0, 0, 0, 20, 20) == 255).all()
    np.testing.assert_array_equal(image.read(0, 20, 20, 9, 9), pixels[20:29, 20:29])
    stains = write_zarr_image(tmp_path / "c.zarr", np.repeat(pixels, 2, axis=-1), (), version)
    with pytest.raises(InputError, match="expected an H&E image of 3 channels, found 6"):
        open_image(stains)


def test_planes_of_samples_grey_and_transparency(tmp_path, pixels):
    planar = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(tmp_path / "p.tif", planar, photometric="rgb", planarconfig="separate")
    image = open_image(tmp_path / "p.tif")
    np.testing.assert_array_equal(image.read(0, 3, 4, 100, 90), pixels[4:94, 3:103])
    tifffile.imwrite(tmp_path / "g.tif", pixels[..., 0], tile=(64, 64))
    grey = open_image(tmp_path / "g.tif").read(0, 3, 4, 100, 90)
    np.testing.assert_array_equal(grey, np.repeat(pixels[4:94, 3:103, :1], 3, axis=-1))
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:50] = 0
    rgba = np.concatenate([pixels, alpha[..., None]], axis=-1)
    tifffile.imwrite(tmp_path / "t.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    Image.fromarray(rgba).save(tmp_path / "t.png")
    for name in ("t.tif", "t.png"):
        got = open_image(tmp_path / name).read(0, 0, 0, 450, 301)
        assert (got[:50] == 255).all()
        np.testing.assert_array_equal(got[50:], pixels[50:])


def test_only_tiles_under_a_region_are_decoded_and_few_are_kept(tmp_path, pixels, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", pixels)
    image, decoded = open_image(path), []
    tile = tiff_image._Pages._tile
    monkeypatch.setattr(
        tiff_image._Pages, "_tile", lambda self, p, i: decoded.append(i) or tile(self, p, i)
    )
    image.read(0, 70, 70, 50, 50)
    assert decoded == [9]
    monkeypatch.setattr(tiff_image, "CACHE_BYTES", 3 * 64 * 64 * 3)
    image.read(0, 0, 0, 450, 301)
    kept = image._open._tiles
    assert len(kept) == 3 and image._open._bytes == sum(t.nbytes for t in kept.values())


def _mean(image):
    return image.read(0, 0, 0, 60, 60).mean()


def test_images_are_pickled_and_go_through_a_fork(tmp_path, pixels):
    image = open_image(write_tiff(tmp_path / "a.tif", pixels))
    wanted = _mean(image)
    assert _mean(pickle.loads(pickle.dumps(image))) == wanted
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_mean, [image] * 4) == [wanted] * 4
    image.close()
    assert _mean(image) == wanted


def test_the_level_that_is_read_follows_from_micrometres(pixels):
    image = ArrayImage(pyramid(pixels[:256, :256], 4))
    assert [coarsest(image, r) for r in (0.3, 1, 1.9, 2, 3.97, 4, 100)] == [0, 0, 0, 1, 2, 2, 3]
    np.testing.assert_array_equal(resampled(image, 2), image.arrays[1])
    only = ArrayImage([pixels])
    np.testing.assert_array_equal(resampled(only, 1), pixels)
    assert np.abs(resampled(only, 2)[:150].astype(int) - halved(pixels)).max() <= 1
    part = resampled(only, 1.5, (31, 20, 90, 60))
    assert part.shape == (40, 60, 3)
    assert part[0, 0] == pytest.approx(
        (np.outer([1, 0.5], [1, 0.5])[..., None] * pixels[20:22, 31:33]).sum((0, 1)) / 2.25, abs=0.6
    )
    assert resampled(only, 10, (-50, -50, 100, 100)).shape == (5, 5, 3)


def test_no_large_piece_is_read(monkeypatch):
    from stfm_jax.data.images import sampling

    monkeypatch.setattr(sampling, "PIECE_PX", 100)
    image = ArrayImage([np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)])
    small = resampled(image, 16.7)
    assert small.shape == (42, 54, 3) and image.largest <= 102**2
    monkeypatch.undo()
    np.testing.assert_array_equal(small, resampled(image, 16.7))


@pytest.mark.parametrize("kind", ["pages", "ome_planes"])
def test_patches_of_a_pyramid_are_those_of_the_picture(tmp_path, pixels, kind):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    path = KINDS[kind](tmp_path / "a.tif", pixels)
    coords = np.array([[100.0, 100.0], [2.0, 299.0], [300.4, 90.6]])
    flat, deep = (ImagePatches(p, coords, 0.5) for p in (tmp_path / "a.png", path))
    for size_um in (40, 200):
        np.testing.assert_array_equal(flat.read([0, 1, 2], size_um), deep.read([0, 1, 2], size_um))
    coarse = deep.at(1.0)
    assert coarse.um_per_px == pytest.approx(1.0, rel=0.01) and deep.um_per_px == 0.5
    assert coarse.read([0], 40).shape == (1, 40, 40, 3)
    assert flat.at(1.0).um_per_px == 0.5


def test_features_of_a_pyramid_are_those_of_the_picture(tmp_path, tissue_pixels):
    """The same level gives the same; a coarser one the same to a small part of their spread."""
    Image.fromarray(tissue_pixels).save(tmp_path / "a.png")
    coords = np.random.default_rng(0).uniform(150, 500, (6, 2))
    encoder = StainTexture(fields_um=(100.0,))

    def features(path, um_per_px):
        return encoder.embed_slide(ImagePatches(path, coords, um_per_px), coords * um_per_px)

    path = write_ome(tmp_path / "a.tif", tissue_pixels)
    np.testing.assert_array_equal(features(path, 0.6), features(tmp_path / "a.png", 0.6))
    fine, coarse = (features(p, 0.5) for p in (tmp_path / "a.png", path))
    error = np.abs(fine - coarse).mean(axis=0) / (fine.std(axis=0) + 1e-3)
    assert np.median(error) < 0.1 and np.quantile(error, 0.95) < 0.6


@pytest.fixture(scope="module")
def tissue_pixels():
    """Drawn tissue 640 pixels a side, each quarter another."""
    from encoders.test_stain_texture import draw_tissue

    quarters = [draw_tissue(seed, nuclei=n) for seed, n in enumerate((150, 60, 90, 20))]
    return np.block([[[quarters[0]], [quarters[1]]], [[quarters[2]], [quarters[3]]]])


def test_scales(tmp_path, pixels, caplog):
    def found(**options):
        path = tmp_path / "s.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, **options)
        return open_image(path).um_per_px

    assert found(resolution=(50_800, 50_800), resolutionunit="INCH") == pytest.approx(0.5)
    assert found(resolution=(2.0, 2.0), resolutionunit="NONE") is None
    with pytest.raises(InputError, match="square pixels"):
        found(resolution=(20_000, 10_000), resolutionunit="CENTIMETER")
    assert found(resolution=(72, 72), resolutionunit="INCH") == pytest.approx(352.8, abs=0.1)
    image = open_image(tmp_path / "s.tif")
    with pytest.raises(InputError, match=r"352\.\d+, which no slide has; give them, as in --x=0.5"):
        scale.um_per_px(image, None, "--x")
    assert scale.um_per_px(image, 0.5, "--x") == 0.5 and not caplog.records
    for wrong in (0.04, 21, np.nan):
        with pytest.raises(InputError, match=r"--x: expected .* between 0.05 and 20"):
            scale.um_per_px(image, wrong, "--x")
    assert found(resolution=(20_000, 20_000), resolutionunit="CENTIMETER") == pytest.approx(0.5)
    with caplog.at_level("WARNING", "stfm_jax"):
        assert scale.um_per_px(open_image(tmp_path / "s.tif"), 0.25, "--x") == 0.25
    assert "says 0.5 um per pixel" in caplog.text
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(50_800, 50_800))
    with pytest.raises(InputError, match="found nothing"):
        scale.um_per_px(open_image(tmp_path / "a.png"), None, "--x")


@pytest.mark.parametrize(
    ("across", "down", "expected"),
    [
        (0.5, 0.5, 0.5), (0.5, 0.52, 0.51), (0.5, None, None), (None, 0.5, None),
        (None, None, None), (0.0, 0.5, None), (0.5, 0.0, None), (-0.5, 0.5, None),
    ],
)  # fmt: skip
def test_one_scale_of_two_axes(across, down, expected):
    assert scale.of_both(across, down, Path("a.tif")) == (expected and pytest.approx(expected))


def test_imagej_says_its_unit(tmp_path, pixels):
    path = tmp_path / "j.tif"
    tifffile.imwrite(
        path, pixels, imagej=True, resolution=(4.0, 4.0), metadata={"unit": "um", "axes": "YXS"}
    )
    assert open_image(path).um_per_px == pytest.approx(0.25)


def test_labels_are_no_slide(tmp_path, pixels):
    path = tmp_path / "l.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        large = np.zeros((900, 900, 3), np.uint8)
        tiff.write(large, photometric="rgb", metadata={"axes": "YXS", "Name": "label image"})
        tiff.write(pixels, photometric="rgb", metadata={"axes": "YXS", "Name": "slide"})
    image = open_image(path)
    assert image.size == (450, 301)
    np.testing.assert_array_equal(image.read(0, 0, 0, 9, 9), pixels[:9, :9])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.mrxs", r"OpenSlide, which is not installed; pip install 'stfm_jax\[slides\]'"),
        ("a.dcm", "OpenSlide, which is not installed"),
        ("a.isyntax", r"no library here opens \.isyntax; convert it .* in QuPath"),
        ("a.vsi", "bfconvert"),
        ("a.svs", "empty or damaged"),
    ],
)
def test_what_nobody_opens(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"not an image")
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        open_image(tmp_path / name)
    assert is_image(tmp_path / name) and not is_image("a.h5ad")


def test_folders_fluorescence_and_damage(tmp_path, pixels):
    with pytest.raises(InputError, match="found a folder; of a slide of several files"):
        open_image(tmp_path)
    stack = np.zeros((5, 80, 80), np.uint16)
    tifffile.imwrite(tmp_path / "f.ome.tif", stack, metadata={"axes": "CYX"})
    with pytest.raises(InputError, match=r"H&E image, of one page of colours.*found 5 pages"):
        open_image(tmp_path / "f.ome.tif")
    tifffile.imwrite(tmp_path / "d.tif", stack[0].astype(np.float32))
    with pytest.raises(InputError, match=r"d\.tif: expected .*float32"):
        open_image(tmp_path / "d.tif")
    whole = write_tiff(tmp_path / "w.tif", pixels, levels=1).read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("head", whole[:6])):
        (tmp_path / f"{name}.tif").write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.tif"):
            open_image(tmp_path / f"{name}.tif").read(0, 0, 0, 450, 301)


def test_what_tifffile_cannot_decode_is_left_to_pillow(tmp_path, pixels, monkeypatch):
    path = tmp_path / "lzw.tif"
    Image.fromarray(pixels).save(path, compression="tiff_lzw")
    monkeypatch.setattr(
        tifffile.TIFF, "DECOMPRESSORS", {tifffile.COMPRESSION.NONE: lambda x: x}, raising=False
    )
    np.testing.assert_array_equal(open_image(path).read(0, 0, 0, 450, 301), pixels)


@pytest.mark.parametrize("orientation", range(9))
def test_no_orientation_is_ever_applied(tmp_path, orientation, caplog):
    """Pillow turns TIFFs, and JPEG not: places would mean different pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("CMYK")  # which is left to Pillow
    picture.save(tmp_path / "a.tif", tiffinfo={274: orientation})
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    whole = {274: orientation}
    Image.fromarray(pixels).save(tmp_path / "b.tif", tiffinfo=whole)  # which tifffile reads
    names = ["a.tif", "a.png", "b.tif"]
    if orientation > 4:
        with pytest.raises(InputError, match=r"a\.tif: .* to be turned by 90 degrees"):
            open_image(tmp_path / names.pop(0))
    for name in names:
        image = open_image(tmp_path / name)
        np.testing.assert_array_equal(image.read(0, 0, 0, *image.size), pixels)
    assert caplog.text.count("shown turned") == len(names) * (orientation > 1)


def test_openslide_opens_what_a_scanner_wrote(tmp_path, pixels, openslide):
    """A tiled TIFF that says it is Aperio's; its label is not read."""
    path = tmp_path / "a.svs"
    text = "Aperio Image Library v1\r\n450x301 [0,0 450x301] (64x64)|AppMag = 20|MPP = 0.4990"
    with tifffile.TiffWriter(path) as tiff:
        for level in pyramid(pixels, 2):
            tiff.write(level, tile=(64, 64), photometric="rgb", description=text, metadata=None)
    assert openslide.OpenSlide.detect_format(str(path)) == "aperio"
    image = open_image(path)
    assert isinstance(image, openslide_image.OpenSlideImage)
    assert image.um_per_px == pytest.approx(0.499) and image.levels[0] == (450, 301)
    np.testing.assert_array_equal(image.read(0, 5, 9, 100, 80), pixels[9:89, 5:105])
    assert _mean(pickle.loads(pickle.dumps(image))) == _mean(image)
    image.close()
    assert _mean(image) == pixels[:60, :60].mean()
    (tmp_path / "b.mrxs").write_bytes(b"\xff\xd8nothing")
    with pytest.raises(InputError, match=r"b\.mrxs: expected a slide that OpenSlide opens"):
        open_image(tmp_path / "b.mrxs")


def test_what_openslide_says_of_a_background():
    assert openslide_image._colour("F0f1f2") == (240, 241, 242)
    for unknown in (None, "", "zzzzzz", "F0f1", "F0f1f2f3"):
        assert openslide_image._colour(unknown) == (255, 255, 255), unknown


def test_openslide_is_asked_for_a_place_on_its_first_level():
    """Whichever level is read, as its documentation says; levels need not be an exact half."""

    class Slide:
        def read_region(self, place, level, size):
            self.asked = place, level, size
            return Image.new("RGBA", size, (10, 20, 30, 255))

    image, slide = object.__new__(openslide_image.OpenSlideImage), Slide()
    image.levels, image.background = (Level(1001, 600), Level(250, 150)), (255, 255, 255)
    found = image._read(slide, 1, 100, 30, 7, 5)
    assert slide.asked == ((400, 120), 1, (7, 5))  # 100 * 1001 / 250 is 400.4
    assert found.shape == (5, 7, 3) and (found == [10, 20, 30]).all()
    image._read(slide, 0, 100, 30, 7, 5)
    assert slide.asked == ((100, 30), 0, (7, 5))


@pytest.mark.parametrize("separate", [False, True])
def test_a_tile_that_was_never_written_is_white(tmp_path, separate):
    pixels = np.full((64, 96, 3), 90, np.uint8)
    tiles = [pixels[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32, 64)]
    if separate:
        tiles = [tile[..., plane] for plane in range(3) for tile in tiles]
    written = [None if i % 6 == 1 else tile for i, tile in enumerate(tiles)]
    layout = {"planarconfig": "separate"} if separate else {}
    shape = (3, 64, 96) if separate else pixels.shape
    tifffile.imwrite(
        *(tmp_path / "a.tif", iter(written)), shape=shape, dtype=np.uint8, tile=(32, 32),
        photometric="rgb", **layout,
    )  # fmt: skip
    expected = pixels.copy()
    expected[:32, 32:64] = 255
    image = open_image(tmp_path / "a.tif")
    assert isinstance(image, tiff_image.TiffImage)
    np.testing.assert_array_equal(image.read(0, 0, 0, 96, 64), expected)


@pytest.mark.parametrize("known", [True, False])
def test_who_could_open_it_with_openslide_is_told_to_install_it(tmp_path, monkeypatch, known):
    monkeypatch.setattr(openslide_image, "installed", lambda: known)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.float32))
    with pytest.raises(InputError) as refused:
        open_image(tmp_path / "a.tif")
    assert (EXTRA in str(refused.value)) == (not known)


@pytest.mark.skipif(PLATFORMS is None, reason="no real files (set STFM_PLATFORMS)")
def test_a_real_slide(openslide):
    image = open_image(PLATFORMS / "slides" / "CMU-1-Small-Region.svs")
    assert image.size == (2220, 2967) and image.um_per_px == pytest.approx(0.499)
    overview = resampled(image, 8 / 0.499)
    assert overview.shape == (186, 139, 3) and 100 < overview.mean() < 250


@pytest.mark.slow
@pytest.mark.skipif(her2st_root() is None, reason="her2st is not here")
def test_a_section_has_the_features_of_its_jpeg_in_every_kind_of_file(tmp_path):
    """Some spots of C2, from the part of the image around them."""
    slide = her2st.read(her2st_root(), "C2")
    scale = slide.patches.um_per_px
    near = np.abs(slide.coords_in - np.median(slide.coords_in, axis=0)).max(axis=1) < 500
    coords = slide.coords_in[near][:9]
    low = coords.min(axis=0).astype(int) - 400
    wide, high = coords.max(axis=0).astype(int) + 400 - low
    pixels = slide.patches.image.read(0, *low, wide, high)
    encoder = StainTexture()
    some = np.flatnonzero(near)[:9]
    wanted = np.concatenate([*encoder.blocks(slide.patches, some)])
    assert len(wanted) == 9
    for kind in KINDS:
        path = KINDS[kind](tmp_path / f"{kind}.tif", pixels)
        source = ImagePatches(path, coords - low, scale)
        got = encoder.embed_slide(source, coords * scale)
        np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=kind)


def test_what_shows_through_is_mixed_with_the_ground():
    """Half of it; colours are whole ones unless they were mixed with black already."""
    rgba = np.array([[[100, 0, 200, 128], [10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    whole = on_background(rgba, (255, 255, 0))
    np.testing.assert_array_equal(whole[0], [[177, 127, 100], [10, 20, 30], [255, 255, 0]])
    mixed = on_background(rgba, (255, 255, 0), mixed=True)
    np.testing.assert_array_equal(mixed[0, :2], [[227, 127, 200], [10, 20, 30]])
    np.testing.assert_array_equal(on_background(rgba[:, 1:2], (1, 2, 3))[0], [[10, 20, 30]])
