"""Registration of serial sections against known motions.

Descriptors are a stand-in for an encoder of images: noisy linear views of the log of the tissue's
true mixtures. The built-in encoder itself is used on real sections, which is slow.
"""

import numpy as np
import pytest
from real_tissue import her2st_root

from stfm_jax.data import registration_fields as fields
from stfm_jax.data.readers import her2st
from stfm_jax.data.registration import Section, align_pair, align_stack
from stfm_jax.data.registration_fields import IDENTITY, Affine, rotation
from stfm_jax.data.simulate import LATTICES, TissueParams, Volume, volume
from stfm_jax.errors import InputError

ROOT = her2st_root()
PITCH = 200.0


def described(made: Volume, noise: float = 1.0) -> list[Section]:
    views = np.random.default_rng(7).normal(size=(made.truth[0].mixtures.shape[1], 24))
    sections = []
    for k, (slide, truth) in enumerate(zip(made.slides, made.truth, strict=True)):
        values = np.log(truth.mixtures + 0.02) @ views
        values = (values - values.mean(axis=0)) / values.std(axis=0)
        values += noise * np.random.default_rng(k).normal(size=values.shape)
        sections.append(Section(slide.name, slide.coords_um, values))
    return sections


def moved(section: Section, motion: Affine, name: str = "moved") -> Section:
    return Section(name, motion.apply(section.coords_um), section.descriptors)


def part(section: Section, keep: np.ndarray) -> Section:
    return Section(section.name, section.coords_um[keep], section.descriptors[keep])


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).sum(axis=1).mean()))


@pytest.fixture(scope="module")
def still() -> list[Section]:
    """Three sections that lie as they grew."""
    params = TissueParams(num_sections=3, num_genes=5, jitter_um=20.0, lost=0.1)
    return described(volume(params, seed=2001))


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_known_motion_is_recovered(still, mirror):
    motion = Affine(rotation(2.2) @ np.diag([mirror, 1.0]), np.array([-3000.0, 5000.0]))
    found, fit = align_pair(still[0], moved(still[0], motion))
    assert rms(found.apply(motion.apply(still[0].coords_um)), still[0].coords_um) < 0.02 * PITCH
    np.testing.assert_allclose(found.matrix @ found.matrix.T, np.eye(2), atol=1e-12)
    assert np.sign(np.linalg.det(found.matrix)) == mirror
    assert fit.residual_um < 0.1 * PITCH
    assert fit.overlap == 1.0 and fit.score > 0.98


def test_a_turned_over_section_needs_flips(still):
    motion = Affine(np.diag([-1.0, 1.0]), np.zeros(2))
    _, right = align_pair(still[0], moved(still[0], motion))
    found, wrong = align_pair(still[0], moved(still[0], motion), flips=False)
    assert np.linalg.det(found.matrix) > 0
    assert wrong.score < right.score - 0.1


def test_an_affine_map_takes_up_stretch_and_shear(still):
    stretch = rotation(-1.0) @ np.array([[1.06, 0.03], [0.0, 0.95]])
    motion = Affine(stretch, np.array([100.0, -700.0]))
    other = moved(still[0], motion)
    rigid, _ = align_pair(still[0], other)
    affine, _ = align_pair(still[0], other, kind="affine")
    truth = still[0].coords_um
    assert rms(affine.apply(other.coords_um), truth) < 0.1 * PITCH
    assert rms(rigid.apply(other.coords_um), truth) > 0.25 * PITCH


def test_outlines_alone_are_enough_where_no_section_is_described(still):
    motion = Affine(rotation(0.7), np.array([900.0, 0.0]))
    bare = [Section(s.name, s.coords_um) for s in (still[0], moved(still[1], motion))]
    found, fit = align_pair(*bare)
    assert rms(found.apply(bare[1].coords_um), still[1].coords_um) < 0.5 * PITCH
    assert np.isnan(fit.descriptors) and fit.score == fit.outline


def test_lattices_do_not_lock():
    """One disc of tissue under two lattices half a pitch apart: the tissue decides."""
    ticks = PITCH * np.arange(-12, 12)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)

    def section(name, offset):
        at = grid + offset
        at = at[(at**2).sum(axis=1) < 1800.0**2]
        return Section(name, at, np.sin(at / 700.0 + np.array([0.3, 0.8])))

    one, other = section("one", np.array([10.0, 20.0])), section("other", np.array([110.0, 120.0]))
    found, _ = align_pair(one, other)
    assert rms(found.apply(other.coords_um), other.coords_um) < 0.2 * PITCH


def test_a_torn_section_is_placed_by_what_is_left(still):
    motion = Affine(rotation(-2.8) @ np.diag([-1.0, 1.0]), np.array([4000.0, 300.0]))
    x = still[1].coords_um[:, 0]
    keep = x > np.quantile(x, 0.4)
    torn = moved(part(still[1], keep), motion)
    found, fit = align_pair(still[0], torn)
    assert rms(found.apply(torn.coords_um), still[1].coords_um[keep]) < 0.5 * PITCH
    assert fit.overlap > 0.9


def test_a_common_motion_changes_nothing(still):
    common = Affine(rotation(0.35), np.array([2500.0, -1300.0]))
    here = align_stack(still)
    there = align_stack([moved(s, common, s.name) for s in still])
    for a, b in zip(here.alignments, there.alignments, strict=True):
        assert rms(common.apply(a.coords_um), b.coords_um) < 0.05 * PITCH


def test_the_middle_section_stays_and_the_pairs_are_reported(still):
    away = [Affine(rotation(a), np.array([a, -a]) * 1000.0) for a in (0.5, -1.7, 3.0)]
    sections = [moved(s, m, s.name) for s, m in zip(still, away, strict=True)]
    stack = align_stack(sections)
    assert stack.reference == still[1].name
    assert stack.alignments[1].motion is IDENTITY
    for section, alignment, motion in zip(still, stack.alignments, away, strict=True):
        assert alignment.name == section.name
        truth = away[1].apply(
            motion.inverse().apply(alignment.motion.inverse().apply(alignment.coords_um))
        )
        assert rms(alignment.coords_um, truth) < 0.5 * PITCH
    assert [(p.fixed, p.moving) for p in stack.pairs] == [
        (still[0].name, still[1].name),
        (still[1].name, still[2].name),
    ]
    assert all(p.closure_um < 0.25 * PITCH and p.overlap > 0.9 for p in stack.pairs)


def test_a_scrap_of_a_section_does_not_part_the_stack(still):
    """The outer sections find each other past the one between, of which an eighth is left."""
    center = np.median(still[1].coords_um, axis=0)
    order = np.argsort(((still[1].coords_um - center) ** 2).sum(axis=1))
    turn = Affine(rotation(2.0), np.array([700.0, 0.0]))
    sections = [still[0], part(still[1], order[: len(order) // 8]), moved(still[2], turn)]
    stack = align_stack(sections, reference=0)
    assert rms(stack.alignments[2].coords_um, still[2].coords_um) < 0.5 * PITCH


def test_a_section_is_refined_against_both_of_those_before_it():
    """Patterns that drift under one outline: no two pairs agree on a motion, their mean decides."""
    ticks = PITCH * np.arange(-10, 11)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    grid = grid[(grid**2).sum(axis=1) < 1800.0**2]
    patterns = [np.sin((grid - [d, 0.0]) / 700.0 + np.array([0.3, 0.8])) for d in (0, 700, 1400)]
    patterns = [(values - values.mean(axis=0)) / values.std(axis=0) for values in patterns]
    sections = [Section(f"{k}", grid, values) for k, values in enumerate(patterns)]
    stack = align_stack(sections, reference=0, flips=False)
    blur = fields.stack_blur_um([grid])
    shapes = [fields.Shape(s.coords_um, s.descriptors, blur) for s in sections]
    first, second, last = (a.motion for a in stack.alignments)

    def agreement(x: float) -> float:
        shifted = Affine(last.matrix, np.array([x, last.shift_um[1]]))
        before = zip(shapes[:2], (first, second), strict=True)
        pairs = [((s.fine, shapes[2].fine), m.inverse().after(shifted)) for s, m in before]
        return sum(fields.score(fine, motion) for fine, motion in pairs)

    steps = np.arange(-80.0, 81.0, 5.0)
    best = steps[np.argmax([agreement(last.shift_um[0] + step) for step in steps])]
    assert abs(best) <= 0.05 * PITCH
    assert abs(last.shift_um[0]) > 1.5 * abs(second.shift_um[0]) > PITCH


def test_aligned_coordinates_are_taken_as_they_are(still):
    stack = align_stack(still, kind="none")
    for section, alignment in zip(still, stack.alignments, strict=True):
        np.testing.assert_array_equal(alignment.coords_um, section.coords_um)
    assert all(p.overlap > 0.9 and p.residual_um < 0.5 * PITCH for p in stack.pairs)
    assert all(np.isnan(p.closure_um) for p in stack.pairs)


def test_sections_apart_are_refused_with_the_residual(still):
    far = moved(still[1], Affine(np.eye(2), np.array([0.0, 9000.0])))
    with pytest.raises(InputError, match=r"found 0% and a residual of \d{4} um.*register them"):
        align_stack([still[0], far], kind="none")


@pytest.mark.parametrize(("share", "fits"), [(0.25, False), (0.35, True), (0.5, True)])
def test_three_tenths_of_the_smaller_must_lie_on_the_other(share, fits):
    ticks = PITCH * np.arange(20)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    one, other = Section("a", grid), Section("b", grid + np.array([(1 - share) * 20 * PITCH, 0]))
    if fits:
        (pair,) = align_stack([one, other], kind="none").pairs
        assert pair.overlap == pytest.approx(share, abs=0.05)
    else:
        with pytest.raises(InputError, match="at least 30% of the smaller"):
            align_stack([one, other], kind="none")


def test_fields_are_read_between_their_nodes():
    """At the nodes they are what they are, and of the grid there is nothing."""
    grid = PITCH * np.stack(np.meshgrid(np.arange(9.0), np.arange(7.0)), axis=-1).reshape(-1, 2)
    field = fields.make_field(grid, np.sin(grid / 500.0), 0.75 * PITCH)
    rows, columns = (a.ravel() for a in np.indices(field.channels.shape[1:]))
    places = field.origin_um + field.step_um * np.column_stack([columns, rows])
    np.testing.assert_allclose(field.at(places), field.channels[:, rows, columns], atol=1e-6)
    assert field.at(places, 1).shape == (1, len(places))
    assert not field.at(places[:1] - 100.0 * PITCH).any()


def pixels(section: Section) -> Section:
    return Section("pixels", section.coords_um * 1.45, section.descriptors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:1], "two sections or more, found 1"),
        (lambda s: [s[0], s[0]], "names of their own"),
        (lambda s: [s[0], part(s[1], np.arange(4))], "at least 10 spots.*found 4"),
        (lambda s: [s[0], Section("b", s[1].coords_um, np.ones((3, 24)))], "one row per spot"),
        (lambda s: [s[0], Section("b", s[1].coords_um, np.ones((1, 24)) * np.nan)], "finite desc"),
        (lambda s: [s[0], Section("b", s[1].coords_um, s[1].descriptors[:, :5])], "widths 24"),
        (lambda s: [s[0], Section("b", s[1].coords_um * np.nan)], "finite coordinates"),
        (lambda s: [s[0], pixels(s[1])], "must be in micrometres"),
    ],
)
def test_bad_stacks_are_refused(still, change, message):
    with pytest.raises(InputError, match=message):
        align_stack(change(still))


def test_an_unknown_kind_and_reference_are_refused(still):
    with pytest.raises(InputError, match="rigid, affine, none, found 'elastic'"):
        align_stack(still, kind="elastic")
    with pytest.raises(InputError, match="found 3"):
        align_stack(still, reference=3)


def trial(lattice: str, seed: int, num_sections: int = 2) -> float:
    """Root mean square error over the spots of a stack of unknown motions, in pitches."""
    pitch = LATTICES[lattice].pitch_um
    params = TissueParams(
        num_sections=num_sections,
        num_genes=5,
        lattice=lattice,
        rotation_deg=180.0,
        flip=0.5,
        shift_um=1000.0,
        jitter_um=0.1 * pitch,
        lost=0.1,
    )
    made = volume(params, seed)
    stack = align_stack(described(made))
    frame = next(
        t for s, t in zip(made.slides, made.truth, strict=True) if s.name == stack.reference
    )
    return max(
        rms(alignment.coords_um, frame.motion.apply(truth.points_um[:, :2])) / pitch
        for alignment, truth in zip(stack.alignments, made.truth, strict=True)
    )


@pytest.mark.parametrize("lattice", ["square", "hex"])
def test_unknown_motions_are_found(lattice):
    assert max(trial(lattice, seed) for seed in range(3)) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("lattice", ["square", "hex"])
def test_unknown_motions_are_found_in_95_of_100_trials(lattice):
    errors = [trial(lattice, seed) for seed in range(100)]
    assert np.mean(np.array(errors) < 0.5) >= 0.95, np.sort(errors)[-10:]


@pytest.mark.slow
@pytest.mark.skipif(ROOT is None, reason="her2st is absent (set STFM_HER2ST)")
def test_real_sections_fit_and_their_genes_agree(tmp_path):
    """C2, C3 and C4 by their images: copying from the neighbours then predicts the genes."""
    from scipy.spatial import cKDTree

    from stfm_jax.data.expression import expression, most_variable_genes
    from stfm_jax.encoders.embed import embedded
    from stfm_jax.encoders.encoder import StainTexture
    from stfm_jax.ops.metrics import pearson

    slides = [her2st.read(ROOT, name) for name in ("C2", "C3", "C4")]
    slides = embedded(slides, [StainTexture(fields_um=(200.0,))], tmp_path)
    stack = align_stack([Section(s.name, s.coords_um, s.features) for s in slides])
    assert all(p.residual_um < 0.5 * PITCH and p.overlap > 0.9 for p in stack.pairs)
    assert all(np.linalg.det(a.motion.matrix) > 0 for a in stack.alignments)
    genes = most_variable_genes([slides[0], slides[2]], 50)
    values = [expression(s, genes, "log1p") for s in slides]
    coords = [a.coords_um for a in stack.alignments]
    copies = [values[k][cKDTree(coords[k]).query(coords[1], k=7)[1]].mean(axis=1) for k in (0, 2)]
    assert np.nanmean(pearson(values[1], np.mean(copies, axis=0))) > 0.5


def test_the_middle_of_a_section_is_that_of_its_extent():
    spots = np.array([[100.0, -50.0], [300.0, 0.0], [290.0, 10.0], [280.0, 150.0]])
    np.testing.assert_array_equal(fields.Shape(spots, spots, 100.0).center_um, [200.0, 50.0])
