"""Features of several encoders on a slide: columns with names, and their keys in AnnData files."""

from __future__ import annotations

import dataclasses

import anndata
import numpy as np
import pytest
from hest_layout import toy_slide

from stfm_jax.data import embeddings, feature_blocks
from stfm_jax.data.embeddings import Embeddings
from stfm_jax.data.feature_blocks import by_encoder, joined
from stfm_jax.data.readers import h5ad
from stfm_jax.errors import InputError

ONE, TWO = "stain_texture_400um", "uni2-h_cls_112um_6e077eda12345678"


def features(n, width, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


@pytest.fixture
def slide():
    bare = toy_slide(n=20)
    return joined(bare, {ONE: features(20, 3), TWO: features(20, 5, 1)})


def test_columns_by_encoder(slide):
    assert (slide.encoder, slide.widths) == (f"{ONE}+{TWO}", (3, 5))
    found = by_encoder(slide)
    assert list(found) == [ONE, TWO]
    np.testing.assert_array_equal(found[TWO], features(20, 5, 1))
    np.testing.assert_array_equal(by_encoder(slide.subset([4, 2]))[TWO], found[TWO][[4, 2]])
    back = joined(slide, {TWO: found[TWO]})
    assert (back.encoder, back.widths) == (TWO, ()) and back.features.shape == (20, 5)
    assert by_encoder(dataclasses.replace(back, features=None)) == {}
    assert list(by_encoder(dataclasses.replace(back, encoder=None))) == [""]


@pytest.mark.parametrize("wrong", [{"widths": (3, 4)}, {"widths": (8,)}, {"encoder": ONE}])
def test_columns_that_do_not_add_up(slide, wrong):
    with pytest.raises(InputError, match="expected 8 features of the encoders"):
        dataclasses.replace(slide, **wrong)


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        (ONE, "stain_texture"),
        ("stain_texture_112.5um", "stain_texture"),
        (TWO, "uni2-h"),
        ("virchow2_cls_mean_112um_8d6cea94", "virchow2"),
        ("efficientnet_lite0_160_320um_57934424aa", "efficientnet_lite0"),
        ("uni_v1", "uni_v1"),
    ],
)
def test_short_names(identity, name):
    assert feature_blocks.short_name(identity) == name


def test_keys_are_short_where_that_tells_them_apart():
    assert feature_blocks.keys([ONE, TWO]) == {
        ONE: "features_stain_texture",
        TWO: "features_uni2-h",
    }
    two = feature_blocks.keys([ONE, "stain_texture_200um"])
    assert list(two.values()) == [f"features_{ONE}", "features_stain_texture_200um"]


@pytest.mark.parametrize("reader", [h5ad.read, h5ad.read_to_predict, h5ad.read_children])
def test_files(slide, tmp_path, reader):
    path = tmp_path / "A.h5ad"
    h5ad.write(slide, path)
    written = anndata.read_h5ad(path)
    assert set(written.obsm) == {"spatial", "features_stain_texture", "features_uni2-h"}
    assert dict(written.uns["encoders"]) == {"stain_texture": ONE, "uni2-h": TWO}
    read = reader(path)
    assert (read.encoder, read.widths) == (slide.encoder, slide.widths)
    np.testing.assert_array_equal(read.features, slide.features)


def test_files_that_do_not_say_more_than_the_key(slide, tmp_path):
    path = tmp_path / "A.h5ad"
    h5ad.write(slide, path)
    written = anndata.read_h5ad(path)
    del written.uns["encoders"]
    written.write_h5ad(path)
    assert h5ad.read(path).encoder == "stain_texture+uni2-h"
    written.obsm["features"] = features(20, 2)
    written.write_h5ad(path)
    assert h5ad.read(path).features.shape == h5ad.read_to_predict(path).features.shape == (20, 2)
    (section,) = h5ad.read_stack_to_predict(path)
    assert section.widths == ()


def embedding(slide, name, width, spots):
    values = features(slide.num_spots, width)
    return Embeddings(values[spots], slide.coords_in[spots], slide.barcodes[spots], name)


def test_embeddings_of_several_keep_the_spots_that_all_have():
    slide = toy_slide(n=20)
    first = embedding(slide, ONE, 3, np.arange(15))
    second = embedding(slide, TWO, 5, np.arange(19, 9, -1))
    found = embeddings.align_all(slide, [first, second])
    assert list(found.barcodes) == list(slide.barcodes[10:15])
    np.testing.assert_array_equal(by_encoder(found)[TWO], features(20, 5)[10:15])
    with pytest.raises(InputError, match=r"different encoders .* found 'stain_texture_400um', 'st"):
        embeddings.align_all(slide, [first, first])
    with pytest.raises(InputError, match=r"are named in their files, found '', "):
        embeddings.align_all(slide, [embedding(slide, None, 3, np.arange(20)), second])
