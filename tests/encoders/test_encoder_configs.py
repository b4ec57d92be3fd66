"""config.json of timm and transformers: what is stated, what is missing, what is damaged."""

from __future__ import annotations

import json

import pytest

from stfm_jax.encoders import configs
from stfm_jax.encoders.preprocess import CLIP, HALF, IMAGENET, Preprocess
from stfm_jax.errors import InputError

ARGS = {"patch_size": 14, "embed_dim": 1536, "depth": 24, "num_heads": 24, "reg_tokens": 8}
STATED = {"patch": 14, "width": 1536, "depth": 24, "registers": 8}
CFG = {
    "input_size": [3, 448, 448],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bilinear",
    "crop_pct": 0.9,
}


@pytest.mark.parametrize("place", ["model_args", "top"])
def test_timm(place):
    args = {"model_args": ARGS} if place == "model_args" else ARGS
    found = configs.timm_config(
        {"architecture": "vit_giant_patch14_224", "global_pool": "token", "pretrained_cfg": CFG}
        | args
    )
    assert (found.library, found.name) == ("timm", "vit_giant_patch14_224")
    assert (found.heads, found.eps, found.pool) == (24, 1e-6, "cls")
    assert found.stated == STATED
    images = Preprocess(497, 448, (0.5,) * 3, (0.25,) * 3, "bilinear")
    assert found.preprocess == images
    assert configs.timm_config({"architecture": "x", **CFG}).preprocess == images  # all flat


def test_what_timm_leaves_out():
    found = configs.timm_config({"architecture": "vit_small_patch16_224", "pretrained_cfg": {}})
    assert (found.heads, found.stated, found.pool) == (6, {}, "cls")
    assert found.preprocess == Preprocess(256, 224, *IMAGENET, "bicubic")


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("vit_base_patch14_reg4_dinov2", 12),
        ("vit_huge_patch14_224", 16),
        ("vit_giant_patch14_224", 16),
        ("vit_giant_patch14_dinov2", 24),
        ("vit_giant_patch14_reg4_dinov2", 24),
        ("resnet50", None),
    ],
)
def test_heads_of_timms_names(name, heads):
    assert configs.timm_config({"architecture": name}).heads == heads


def test_all_tokens_are_no_pooling():
    found = configs.timm_config(
        {"architecture": "vit_huge_patch14_224", "model_args": {"global_pool": ""}}
    )
    assert found.pool is None


DINOV2 = {
    "model_type": "dinov2",
    "patch_size": 16,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
BIT = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
}


def test_transformers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DINOV2))
    found = configs.read(tmp_path)
    assert (found.library, found.name, found.heads) == ("transformers", "dinov2", 16)
    assert found.stated == {"patch": 16, "width": 1024, "depth": 24}
    assert found.preprocess is None and found.pool is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(BIT))
    assert configs.read(tmp_path).preprocess == Preprocess(256, 224, *HALF, "bilinear")


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({}, Preprocess(224, 224, *HALF, "bilinear")),
        ({"image_processor_type": "BitImageProcessor"}, Preprocess(224, 224, *CLIP, "bicubic")),
        ({"size": 384, "resample": 3}, Preprocess(384, 384, *HALF, "bicubic")),
        ({"size": {"height": 256, "width": 256}}, Preprocess(256, 256, *HALF, "bilinear")),
        ({"do_normalize": False}, Preprocess(224, 224, (0.0,) * 3, (1.0,) * 3, "bilinear")),
    ],
)
def test_images_of_transformers(images, expected):
    assert configs.huggingface_config(DINOV2, images).preprocess == expected


def test_eps_of_transformers_vit():
    assert configs.huggingface_config({"model_type": "vit"}, None).eps == 1e-12
    assert configs.huggingface_config({"model_type": "dinov2"}, None).eps == 1e-6


def test_no_config_states_nothing(tmp_path):
    assert configs.read(tmp_path) == configs.Config()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "expected JSON"),
        ("[1]", "JSON object, found list"),
        ('{"depth": "many"}', "a value that is none"),
        ('{"pretrained_cfg": {"input_size": 224}}', "a value that is none"),
        ('{"pretrained_cfg": {"input_size": [3, 224, 256]}}', "square images"),
        ('{"pretrained_cfg": {"interpolation": "lanczos"}}', "bilinear, bicubic, found 'lanczos'"),
        ('{"pretrained_cfg": {"crop_pct": 1.5}}', "no less than what is cropped"),
    ],
)
def test_damaged_configs(tmp_path, text, match):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=f"config.json: .*{match}"):
        configs.read(tmp_path)
