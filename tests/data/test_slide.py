"""Slides: what they carry into a subset, and places in a stack's frame that are none."""

import dataclasses

import numpy as np
import pytest
from hest_layout import toy_slide

from stfm_jax.errors import InputError


def test_a_subset_keeps_what_belongs_to_its_spots():
    slide = toy_slide()
    slide = dataclasses.replace(slide, registered_um=slide.coords_um + 7.0)
    index = np.array([5, 0, 11])
    some = slide.subset(index)
    np.testing.assert_array_equal(some.registered_um, slide.registered_um[index])
    np.testing.assert_array_equal(some.coords_um, slide.coords_um[index])
    np.testing.assert_array_equal(some.coords_in, slide.coords_in[index])
    np.testing.assert_array_equal(some.features, slide.features[index])
    np.testing.assert_array_equal(some.counts.toarray(), slide.counts[index].toarray())
    assert toy_slide().subset(index).registered_um is None


def test_a_subset_sees_the_patches_of_its_spots():
    class Patches:
        def read(self, spots, field_um):
            return np.asarray(spots) * 10

    index = np.array([5, 0, 11])
    assert toy_slide().patches is None and toy_slide().subset(index).patches is None
    some = dataclasses.replace(toy_slide(), patches=Patches()).subset(index)
    np.testing.assert_array_equal(some.patches.read([2, 0], 100.0), [110, 50])


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (np.zeros((20, 3)), r"\[20, 2\] in micrometres, found \(20, 3\)"),
        (np.zeros((19, 2)), r"found \(19, 2\)"),
        (np.full((20, 2), np.nan), "40 values not finite; register the stack again"),
    ],
)
def test_bad_places_are_refused(places, message):
    with pytest.raises(InputError, match=rf"slide 'A1': .*registered.*{message}"):
        dataclasses.replace(toy_slide(), registered_um=places)
