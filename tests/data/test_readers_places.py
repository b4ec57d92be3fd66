"""Where spots lie and at what scale, and whether they are of one slide, of tables made by hand."""

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stfm_jax.data.readers import joined, pitch, places, scanpy_scale
from stfm_jax.data.readers import visium as visium_reader
from stfm_jax.errors import InputError

HEX = np.array([[2 * c + r % 2, r] for r in range(8) for c in range(8)], float)  # array col, row
HEX_UM = HEX * [50.0, 50.0 * np.sqrt(3.0)]
SQUARE = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), axis=-1).reshape(-1, 2)


def file(coords, **obs):
    n = len(coords)
    names = np.arange(n).astype(str)
    made = anndata.AnnData(sp.csr_matrix((n, 2)), obs=pd.DataFrame(obs, index=names))
    made.obsm["spatial"] = coords
    return made


def turned(points, angle, scale):
    c, s = np.cos(angle), np.sin(angle)
    return scale * points @ np.array([[c, s], [-s, c]]) + [30.0, -7.0]


# Scales


def test_a_turned_array_has_its_pitch_and_what_lies_beside_its_place():
    pixels = turned(SQUARE, 0.7, 12.0)
    found, off = pitch.similarity(SQUARE, pixels, "slide", "x, y")
    assert found == pytest.approx(12.0)
    np.testing.assert_allclose(off, 0.0, atol=1e-9)
    pixels[9] += [2.4, 0.0]
    found, off = pitch.similarity(SQUARE, pixels, "slide", "x, y")
    assert found == pytest.approx(12.0, rel=0.01) and off.argmax() == 9
    assert off[9] == pytest.approx(2.4, rel=0.1) and np.median(off) < 0.2


def test_an_array_seen_from_behind_fits_where_that_may_be():
    behind = turned(SQUARE * [-1.0, 1.0], 0.3, 5.0)
    assert pitch.similarity(SQUARE, behind, "slide", "x, y", True)[0] == pytest.approx(5.0)
    with pytest.raises(InputError, match=r"slide: pixel coordinates must follow x, y by"):
        pitch.similarity(SQUARE, behind, "slide", "x, y")


@pytest.mark.parametrize(("off", "fits"), [(0.24, True), (0.26, False)])
def test_places_may_miss_by_a_quarter_of_the_pitch(off, fits):
    """On a small array; here by the same everywhere, in directions that add up to nothing."""
    four = SQUARE[(SQUARE < 2).all(axis=1)]
    away = np.array([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    pixels = 10.0 * (four + off * away)
    if fits:
        assert pitch.similarity(four, pixels, "", "")[0] == pytest.approx(10.0)
    else:
        with pytest.raises(InputError, match=r"miss it by 2\.6 pixels at a pitch of 10;"):
            pitch.similarity(four, pixels, "", "")


def test_one_place_has_no_pitch():
    with pytest.raises(InputError):
        pitch.similarity(SQUARE[:1], SQUARE[:1] * 3.0, "", "")


def test_scales_that_differ_by_more_than_a_tenth_are_said(caplog):
    assert pitch.agree(1.0, 1.099) and pitch.agree(1.099, 1.0)
    assert not pitch.agree(1.0, 1.101) and not pitch.agree(1.101, 1.0)
    assert pitch.um_per_px({"a": None, "b": 0.5, "c": 0.54}, "slide") == 0.5 and not caplog.messages
    assert pitch.um_per_px({"b": 0.5, "c": 0.7}, "slide") == 0.5
    assert "slide: 0.5 um per pixel by b, which is taken, but 0.7 by c" in caplog.messages[0]


def visium(coords, factors, **obs):
    made = file(coords, **obs)
    made.uns["spatial"] = {"lib": {"scalefactors": factors}}
    return made


def of_array(scale=2.0):
    """Pixels of 1 / scale um, with places on the array."""
    columns = {"array_col": HEX[:, 0].astype(int), "array_row": HEX[:, 1].astype(int)}
    return turned(HEX_UM, 0.2, 1.0 / scale), columns


def test_micrometres_per_pixel_of_what_scanpy_leaves():
    pixels, columns = of_array()
    exact = scanpy_scale.scales(visium(pixels, {"microns_per_pixel": 1.9}), "")
    assert list(exact.values()) == [1.9]
    exact = scanpy_scale.scales(visium(pixels, {"microns_per_pixel": np.array([1.9])}), "")
    assert list(exact.values()) == [1.9]
    found = scanpy_scale.scales(visium(pixels, {"spot_diameter_fullres": 27.5}, **columns), "")
    assert [name.split()[-1] for name in found] == ["spots", "uns['spatial']"]
    np.testing.assert_allclose(list(found.values()), [2.0, 2.0], rtol=1e-6)
    assert scanpy_scale.scales(visium(pixels, {}, **columns), "") == {}
    assert scanpy_scale.scales(visium(pixels, {"spot_diameter_fullres": -3.0}), "") == {}


def test_the_diameter_is_taken_where_it_and_the_distance_differ():
    """Every other spot of a row is missing, so that neighbours are farther apart."""
    pixels, _ = of_array()
    some = pixels[(HEX[:, 0] % 4 == 0) & (HEX[:, 1] % 2 == 0)]
    found = scanpy_scale.scales(visium(some, {"spot_diameter_fullres": 27.5}), "")
    assert next(iter(found)) == "spot_diameter_fullres of uns['spatial']"
    np.testing.assert_allclose(list(found.values()), [65.0 / 27.5, 2.0 / np.sqrt(3.0)], rtol=1e-6)


def test_one_spot_has_its_diameter_alone():
    made = visium(np.array([[5.0, 5.0]]), {"spot_diameter_fullres": 130.0})
    assert list(scanpy_scale.scales(made, "").values()) == [0.5]


def test_without_factors_an_array_or_a_hexagonal_lattice_tells():
    pixels, columns = of_array(0.5)
    (scale,) = scanpy_scale.scales(file(pixels, **columns), "").values()
    assert scale == pytest.approx(0.5)
    (scale,) = scanpy_scale.scales(file(pixels), "").values()
    assert scale == pytest.approx(0.5)
    assert scanpy_scale.scales(file(turned(SQUARE, 0.1, 90.0)), "") == {}
    assert scanpy_scale.scales(file(pixels, parent=["p"] * 64), "") == {}
    wrong = {name: np.random.default_rng(0).permutation(v) for name, v in columns.items()}
    (scale,) = scanpy_scale.scales(file(pixels, **wrong), "").values()
    assert scale == pytest.approx(0.5)  # by its lattice


def test_factors_of_one_library_alone():
    made = file(SQUARE, library_id=["b"] * 64)
    made.uns["spatial"] = {name: {"scalefactors": {"x": i}} for i, name in enumerate("ab")}
    assert scanpy_scale.scalefactors(made, "")["x"] == 1
    del made.obs["library_id"]
    with pytest.raises(InputError, match=r"found 2 in uns\['spatial'\] \(a, b\)"):
        scanpy_scale.scalefactors(made, "slide")
    made.uns["spatial"] = {"a": {"images": {}}, "b": {"scalefactors": {"x": 5}}}
    assert scanpy_scale.scalefactors(made, "")["x"] == 5
    made.uns["spatial"] = {"is_single": True}
    assert scanpy_scale.scalefactors(made, "") is None


# Places


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        (("x", "y"), "x"), (("y", "x"), "x"), (("Y_centroid", "X_centroid"), "X_centroid"),
        (("pxl_row_in_fullres", "pxl_col_in_fullres"), "pxl_col_in_fullres"),
        (("imagerow", "imagecol"), "imagecol"), (("spatial1", "spatial2"), "spatial1"),
        (("1", "0"), "0"),
    ],
)  # fmt: skip
def test_columns_of_a_table_are_taken_by_name(columns, first):
    table = pd.DataFrame(SQUARE, columns=columns, index=np.arange(64).astype(str))
    found = places.coordinates(file(table), "")
    second = next(name for name in columns if name != first)
    np.testing.assert_array_equal(found, table[[first, second]])


@pytest.mark.parametrize("columns", [("a", "b"), ("x", "x2"), ("spatial1", "b")])
def test_columns_that_say_nothing_are_refused(columns):
    table = pd.DataFrame(SQUARE, columns=columns, index=np.arange(64).astype(str))
    with pytest.raises(InputError, match="expected the columns x and y in the table"):
        places.coordinates(file(table), "")


def test_numbers_are_a_matrix_of_numbers():
    np.testing.assert_array_equal(places.numbers(sp.csr_matrix(np.eye(2)), "", ""), np.eye(2))
    for wrong in (np.ones(3), np.array([["a", "b"]]), np.ones((1, 1, 1))):
        with pytest.raises(InputError, match="slide: expected it to be a matrix of numbers"):
            places.numbers(wrong, "it", "slide")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (3.0 * SQUARE + 5.0, ""),
        (SQUARE[:, ::-1], "x and y the other way round"),
        (np.random.default_rng(0).permutation(SQUARE), "other places"),
        (SQUARE * [1.0, -1.0], "other places"),
        (np.full((64, 2), np.nan), ""),
        (np.where(np.arange(64)[:, None] < 2, SQUARE[:, ::-1], np.nan), ""),
        (np.ones((64, 2)), ""),
    ],
)
def test_pixel_columns_that_contradict_the_places_are_said(caplog, columns, said):
    made = file(SQUARE, pxl_col_in_fullres=columns[:, 0], pxl_row_in_fullres=columns[:, 1])
    with caplog.at_level(logging.WARNING, "stfm_jax"):
        np.testing.assert_array_equal(places.coordinates(made, "slide"), SQUARE)
    assert bool(caplog.messages) == bool(said) and said in "".join(caplog.messages)


# One slide, or several


def test_one_slide_is_taken_as_it_is():
    pixels, columns = of_array()
    joined.require_one_slide(file(pixels, **columns), "")
    joined.require_one_slide(file(SQUARE, sample=["a"] * 64), "")


def test_columns_that_name_several_slides():
    made = file(SQUARE, sample=["b", "a"] * 32)
    with pytest.raises(InputError, match=r"slide: .*found 2 in obs\['sample'\] \('a', 'b'\)"):
        joined.require_one_slide(made, "slide")
    many = file(SQUARE, sample=list("edcba") * 12 + ["a"] * 4)
    with pytest.raises(InputError, match=r"\('a', 'b', 'c', 'd', \.\.\.\)"):
        joined.require_one_slide(many, "slide")


def test_barcodes_that_name_several_slides_unless_they_are_children():
    made = file(SQUARE)
    letters = [f"{'ACGT' * 3}{'ACGT'[i % 4]}{'ACGT'[i // 4 % 4]}" for i in range(64)]
    made.obs_names = [f"{core}-{1 + i // 32}" for i, core in enumerate(letters)]
    with pytest.raises(InputError, match="found barcodes of 2 \\('-1', '-2' around them\\)"):
        joined.require_one_slide(made, "slide")
    made.obs["parent"] = "p"
    joined.require_one_slide(made, "slide")


def with_places_twice(number):
    pixels, columns = of_array()
    for name in columns:
        columns[name][:number] = columns[name][number : 2 * number]
    return file(pixels, **columns)


def test_places_of_an_array_that_occur_twice():
    joined.require_one_slide(with_places_twice(0), "")
    with pytest.raises(
        InputError, match="slide: expected one slide, found 1 of 64 spots on a place"
    ):
        joined.require_one_slide(with_places_twice(1), "slide")
    big = np.arange(200)
    columns = {"array_row": np.where(big < 2, big + 2, big), "array_col": big * 0}
    coords = np.stack([big * 10.0, big * 0.0], axis=1)
    joined.require_one_slide(file(coords, **columns), "")  # one of a hundred may


def over_one_another(step, share=1.0):
    other = SQUARE[: int(share * 64)] + step
    return file(np.concatenate([SQUARE, other]) * 100.0)


@pytest.mark.parametrize("step", [(0.3, 0.1), (-0.3, 0.1), (0.0, 0.4), (0.0, -0.4)])
def test_two_lattices_over_one_another(step):
    with pytest.raises(InputError, match="two arrays that lie over one another"):
        joined.require_one_slide(over_one_another(step), "")


@pytest.mark.parametrize(("number", "refused"), [(5, False), (10, True)])
def test_a_twentieth_of_the_spots_must_be_near_others(number, refused):
    """Of 16 x 16 spots and some more, near as many of them."""
    wide = np.stack(np.meshgrid(np.arange(16.0), np.arange(16.0)), axis=-1).reshape(-1, 2)
    made = file(np.concatenate([wide, wide[::20][:number] + np.array([0.2, 0.1])]))
    if refused:
        with pytest.raises(InputError, match=r"found 20 of 266 spots 0\.224 away"):
            joined.require_one_slide(made, "")
    else:
        joined.require_one_slide(made, "")


def test_spots_that_are_near_by_chance_or_one_lattice_are_one_slide():
    joined.require_one_slide(over_one_another((0.5, 0.5)), "")  # one lattice, turned
    rng = np.random.default_rng(0)
    joined.require_one_slide(file(rng.uniform(size=(200, 2)) * 1000.0), "")
    few = np.concatenate([SQUARE[:9], SQUARE[:9] + np.array([0.3, 0.1])])
    joined.require_one_slide(file(few), "")
    moved = SQUARE + 0.3 * rng.normal(size=SQUARE.shape)
    joined.require_one_slide(file(np.concatenate([SQUARE, moved])), "")


def test_spots_on_top_of_one_another_have_no_distance():
    twice = np.repeat(SQUARE, 2, axis=0)
    found = scanpy_scale.scales(visium(twice, {"spot_diameter_fullres": 130.0}), "")
    assert list(found.values()) == [0.5]  # by the diameter alone


@pytest.mark.parametrize(
    ("by_pitch", "diameter_um"),
    [(0.65, 65), (0.6, 65), (0.55, 55), (0.58, 55), (0.2, 65), (0.46, 65), (3.0, 65)],
)
def test_a_diameter_is_of_65_um_unless_55_fit_better(by_pitch, diameter_um):
    """A spot of 100 px; what fits neither within a tenth is not the other either."""
    assert visium_reader.by_diameter(100.0, by_pitch) == pytest.approx(diameter_um / 100)
