"""Stacks of slides: grouped, ordered, spaced and registered; and stacks that are none."""

import csv
import dataclasses
import io
import logging

import h5py
import numpy as np
import pytest
from hest_layout import toy_slide
from real_tissue import her2st_root

from stfm_jax.data import feature_store, stack
from stfm_jax.data.readers import her2st
from stfm_jax.data.registration_fields import Affine, rotation
from stfm_jax.data.simulate import TissueParams, volume
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

ROOT = her2st_root()
PITCH = 200.0
MOVED = TissueParams(
    num_sections=4,
    num_genes=5,
    section_gap_um=40.0,
    rotation_deg=180.0,
    flip=0.5,
    shift_um=1000.0,
    jitter_um=20.0,
    lost=0.1,
)


def described(params: TissueParams, seed: int, noise: float = 0.1):
    """A volume whose slides' features are its true mixtures in other axes, with noise."""
    made = volume(params, seed)
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(made.truth[0].mixtures.shape[1], 12))
    slides = [
        dataclasses.replace(
            slide,
            features=(t.mixtures @ axes + noise * rng.normal(size=(slide.num_spots, 12))).astype(
                np.float32
            ),
            encoder="toy",
        )
        for slide, t in zip(made.slides, made.truth, strict=True)
    ]
    return slides, made.truth


@pytest.fixture(scope="module")
def still() -> list[Slide]:
    """Four sections that lie as they grew."""
    return described(dataclasses.replace(MOVED, rotation_deg=0, flip=0, shift_um=0), 5)[0]


@pytest.fixture(scope="module")
def moved():
    """Four sections under unknown motions, and their truth."""
    return described(MOVED, 5)


@pytest.fixture(scope="module")
def aligned(moved):
    return stack.registered(moved[0], "rigid")


def toys(*given) -> list[Slide]:
    """Slides (name, z_um, patient)."""
    given = [(*entry, *(None, "")[len(entry) - 1 :]) for entry in given]
    return [dataclasses.replace(toy_slide(n), z_um=z, patient=p) for n, z, p in given]


def names(slides) -> list[str]:
    return [slide.name for slide in slides]


def error(slides, truth, reference: str) -> float:
    """Largest root mean square distance of a section's spots from where they belong."""
    frame = next(t for s, t in zip(slides, truth, strict=True) if s.name == reference)
    return max(
        np.sqrt(((s.registered_um - frame.motion.apply(t.points_um[:, :2])) ** 2).sum(1).mean())
        for s, t in zip(slides, truth, strict=True)
    )


def test_stacks_are_those_of_each_patient_by_height():
    slides = toys(("b", 32.0, "P2"), ("S1", 48.0, "P1"), ("a", 16.0, "P2"), ("S2", -16.0, "P1"))
    found = stack.stacks(slides)
    assert {patient: names(group) for patient, group in found.items()} == {
        "P2": ["a", "b"],
        "P1": ["S2", "S1"],
    }
    assert [names(g) for g in stack.stacks(toys(("x", 1.0), ("y", 0.0))).values()] == [["y", "x"]]


def test_labels_may_count_down_or_say_nothing():
    for labels in (["S3", "S2", "S1"], ["S2", "S10", "S11"], ["A2", "B1", "A3"], ["S2", "S1", "x"]):
        slides = toys(*((label, 16.0 * i) for i, label in enumerate(labels)))
        assert names(stack.stacks(slides)[""]) == labels
    named = [dataclasses.replace(s, section="same") for s in toys(("S1", 0.0), ("S2", 5.0))]
    assert names(stack.stacks(named)[""]) == ["S1", "S2"]
    named = toys(("S2", 0.0), ("S1", 16.0), ("S3", 32.0))
    named = [dataclasses.replace(s, section=f"c{i}") for i, s in enumerate(named)]
    assert names(stack.stacks(named)[""]) == ["S2", "S1", "S3"]


BAD = {
    "one section": ([("A", 0.0, "P1"), ("B", 0.0, "P2"), ("C", 1.0, "P2")], "'P1': .*'A' alone.*"),
    "one of nobody": ([("A", 0.0)], "stack of sections: .*predict a single one with STFlow"),
    "no height": ([("A", 0.0), ("B", None)], r"slide 'B': .*not known; set obs\['z_um'\].*spacing"),
    "one height": ([("A", 16.0), ("B", 0.0), ("C", 16.0)], "'A' and 'C' both at 16 um"),
    "order": (
        [("S1", 0.0, "P1"), ("S2", 32.0, "P1"), ("S3", 16.0, "P1")],
        r"'P1': .*S1 \(0\), S3 \(16\), S2 \(32\); correct z_um, or the sections' labels",
    ),
    "order of many": (
        [(f"S{i}", 16.0 * (i if i < 28 else 57 - i)) for i in range(30)],
        r"\.\.\., S18 \(288\), .*S27 \(432\), S29 \(448\), S28 \(464\); correct",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_stacks(case):
    given, message = BAD[case]
    with pytest.raises(InputError, match=message):
        stack.stacks(toys(*given))


def test_spacing_goes_by_the_labels_and_keeps_heights():
    slides = toys(("S10", None, "P1"), ("S2", None, "P1"), ("a", 7.0, "P2"), ("b", 3.0, "P2"))
    found = stack.spaced(slides, 16.0)
    assert [(s.name, s.z_um) for s in found] == [("S10", 16.0), ("S2", 0.0), ("a", 7.0), ("b", 3.0)]
    named = [
        dataclasses.replace(slide, section=section)
        for slide, section in zip(toys(("x",), ("y",), ("z",)), ("9", "x1", "10"), strict=True)
    ]
    assert [s.z_um for s in stack.spaced(named, 5)] == [0.0, 10.0, 5.0]


def test_bad_spacing():
    with pytest.raises(InputError, match=r"'B': has no z_um, but 'A' of the same stack has \(7\)"):
        stack.spaced(toys(("A", 7.0), ("B", None)), 16.0)
    for spacing in (0.0, -5.0, np.nan, np.inf):
        with pytest.raises(InputError, match=r"section_spacing_um must be a number .* above 0"):
            stack.spaced(toys(("A",), ("B",)), spacing)


def test_unknown_motions_are_found(moved, aligned):
    slides, fitted = aligned
    assert error(slides, moved[1], fitted.reference) < 0.5 * PITCH
    for before, after, alignment in zip(moved[0], slides, fitted.alignments, strict=True):
        np.testing.assert_array_equal(after.registered_um, alignment.coords_um)
        np.testing.assert_array_equal(after.coords_um, before.coords_um)
        assert alignment.name == before.name


def test_expression_is_never_looked_at(moved, aligned):
    rng = np.random.default_rng(0)
    bare = [dataclasses.replace(s, counts=None, genes=None) for s in moved[0]]
    mixed = [
        dataclasses.replace(s, counts=s.counts[rng.permutation(s.num_spots)]) for s in moved[0]
    ]
    for changed in (bare, mixed):
        slides, fitted = stack.registered(changed, "rigid")
        assert fitted.pairs == aligned[1].pairs
        for a, b in zip(slides, aligned[0], strict=True):
            np.testing.assert_array_equal(a.registered_um, b.registered_um)


def test_places_that_are_there_stay(aligned):
    slides, fitted = aligned
    again, measured = stack.registered(slides, "rigid")
    for a, b in zip(again, slides, strict=True):
        np.testing.assert_array_equal(a.registered_um, b.registered_um)
    for a, b in zip(measured.pairs, fitted.pairs, strict=True):
        assert abs(a.score - b.score) < 0.02 and a.overlap > 0.9 and np.isnan(a.closure_um)


def test_none_takes_coordinates_as_they_are(still):
    slides, _ = stack.registered(still, "none")
    for slide in slides:
        np.testing.assert_array_equal(slide.registered_um, slide.coords_um)


def test_outlines_alone_where_a_section_has_no_features(still, caplog):
    with caplog.at_level(logging.INFO, "stfm_jax"):
        _, fitted = stack.registered(
            [still[0], dataclasses.replace(still[1], features=None, encoder=None)], "rigid"
        )
    assert np.isnan(fitted.pairs[0].descriptors)
    assert "outlines alone: 'P1_S2' has no features" in caplog.text


def in_file(slides, path) -> list[Slide]:
    """The slides, their features in one file."""
    with h5py.File(path, "w") as file:
        for slide in slides:
            file[slide.name] = slide.features
        stored = [feature_store.stored_features(file[slide.name], str(path)) for slide in slides]
    return [dataclasses.replace(s, features=f) for s, f in zip(slides, stored, strict=True)]


def test_large_sections_are_registered_by_some_spots(moved, monkeypatch, tmp_path):
    """The same from a file as from memory, and the motion moves all spots."""
    monkeypatch.setattr(stack, "MOST_SPOTS", 150)
    slides, fitted = stack.registered(moved[0], "rigid")
    assert error(slides, moved[1], fitted.reference) < 0.5 * PITCH
    assert [s.num_spots for s in slides] == [s.num_spots for s in moved[0]]
    assert [len(a.coords_um) for a in fitted.alignments] == [s.num_spots for s in slides]
    filed, other = stack.registered(in_file(moved[0], tmp_path / "features.h5"), "rigid")
    assert other.pairs == fitted.pairs
    np.testing.assert_array_equal(filed[3].registered_um, slides[3].registered_um)


def test_report_has_a_row_for_each_pair(aligned):
    slides, fitted = aligned
    table = stack.report(fitted, slides)
    assert [(row["fixed"], row["moving"], row["dz_um"]) for row in table] == [
        (f"P1_S{i}", f"P1_S{i + 1}", 40.0) for i in (1, 2, 3)
    ]
    assert all(row["overlap"] > 0.9 and 0 <= row["residual_um"] < PITCH for row in table)
    text = io.StringIO()
    csv.DictWriter(text, list(table[0])).writerows(table)
    columns = "fixed moving residual_um overlap outline descriptors score closure_um dz_um"
    assert list(table[0]) == columns.split()
    unknown = [dataclasses.replace(slide, z_um=None) for slide in slides]
    assert np.isnan(stack.report(fitted, unknown)[0]["dz_um"])


def at(slide: Slide, shift_um: float) -> Slide:
    return dataclasses.replace(slide, registered_um=slide.coords_um + shift_um)


def test_places_apart_are_refused_with_the_residual(still):
    apart = [at(slide, 9000.0 * i) for i, slide in enumerate(still)]
    message = r"'P1_S1' and 'P1_S2': .*found 0% and a residual of \d{4,5} um.*spatial3d.*correct"
    with pytest.raises(InputError, match=message):
        stack.registered(apart, "rigid")


def test_bad_sections(still):
    with pytest.raises(InputError, match="found them for 'P1_S1' but not for 'P1_S2'"):
        stack.registered([at(still[0], 0.0), *still[1:]], "rigid")
    other = dataclasses.replace(still[1], encoder="uni_v1")
    with pytest.raises(InputError, match=r"one encoder .*toy \('P1_S1'\) and uni_v1 \('P1_S2'\)"):
        stack.registered([still[0], other], "rigid")
    pixels = dataclasses.replace(still[1], coords_um=still[1].coords_um * 1.45)
    with pytest.raises(InputError, match="must be in micrometres"):
        stack.registered([still[0], pixels], "rigid")
    with pytest.raises(InputError, match=r"two sections or more, found 1.*STFlow"):
        stack.registered(still[:1], "rigid")
    with pytest.raises(InputError, match="rigid, affine, none, found 'elastic'"):
        stack.registered(still, "elastic")


def warnings(caplog, slides, kind="none") -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "stfm_jax"):
        stack.registered(slides, kind)
    return [record.getMessage() for record in caplog.records]


def without(slide: Slide, side: float) -> Slide:
    """A section that lost two fifths, on the left (-1) or on the right (1)."""
    x = side * slide.coords_um[:, 0]
    return slide.subset(x < np.quantile(x, 0.6))


def test_a_wrong_order_is_warned_of_and_a_torn_section_is_not(still, caplog):
    assert not warnings(caplog, still)
    (message,) = warnings(caplog, [still[0], still[2], still[1], still[3]])
    assert message.startswith("sections 'P1_S3' and 'P1_S2' would fit")
    for k in range(4):
        torn = [without(slide, 1.0) if i == k else slide for i, slide in enumerate(still)]
        assert not warnings(caplog, torn)


def test_a_wrong_tissue_is_warned_of(still, caplog):
    other = dataclasses.replace(described(MOVED, 6)[0][2], name="other")
    messages = warnings(caplog, [still[0], other], "rigid")
    assert len(messages) == 1 and "'P1_S1' and 'other' fit badly" in messages[0]


@pytest.mark.slow
@pytest.mark.skipif(ROOT is None, reason="her2st is absent (set STFM_HER2ST)")
def test_real_outlines_tell_tissues_apart(caplog):
    """Sections of the patients C, D and E, by outlines: neighbours fit, others are warned of."""
    turn = Affine(rotation(2.0), np.array([300.0, 500.0]))

    def read(name):
        slide = her2st.read(ROOT, name)
        return dataclasses.replace(slide, coords_um=turn.apply(slide.coords_um), patches=None)

    for pair in (("C2", "C3"), ("D1", "D2"), ("E2", "E3")):
        assert not warnings(caplog, [read(pair[0]), her2st.read(ROOT, pair[1])], "rigid")
    for pair in (("C2", "D1"), ("D6", "E1"), ("C3", "E2")):
        (message,) = warnings(caplog, [read(pair[0]), her2st.read(ROOT, pair[1])], "rigid")
        assert "fit badly" in message
