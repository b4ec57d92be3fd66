"""Names of transformers, Meta and checkpoints with nests come out as timm's."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy_vit
import pytest
from test_vit import PLAIN

from stfm_jax.encoders import names, weights
from stfm_jax.errors import InputError

LAYERS = 2
SWIGLU = dataclasses.replace(
    PLAIN, depth=LAYERS, swiglu=True, layer_scale=True, registers=2, embed_prefix=False
)
GELU = dataclasses.replace(PLAIN, depth=LAYERS)
OUTER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "reg_token": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
OLD_ATTENTION = {
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
}
NEW_ATTENTION = {f"attn.{x}": f"attention.{x}_proj" for x in "qkv"} | {
    "attn.proj": "attention.o_proj"
}
VIT_NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
SCALES = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
NAMINGS = {
    "vit_4": (
        GELU,
        "encoder.layer",
        OLD_ATTENTION | VIT_NORMS | {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"},
    ),
    "vit_5": (GELU, "layers", NEW_ATTENTION | VIT_NORMS),
    "dinov2_4": (
        SWIGLU,
        "encoder.layer",
        OLD_ATTENTION | SCALES | {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"},
    ),
    "dinov2_5": (
        SWIGLU,
        "encoder.layer",
        NEW_ATTENTION
        | SCALES
        | {"mlp.fc1_g": "mlp.gate_proj", "mlp.fc1_x": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"},
    ),
}


def split(tensors, name, parts):
    """With `name` cut along its rows into `parts`."""
    out = {}
    for key, value in tensors.items():
        if f".{name}." in key:
            for part, rows in zip(parts, np.split(value, len(parts)), strict=True):
                out[key.replace(f".{name}.", f".{part}.")] = rows
        else:
            out[key] = value
    return out


def renamed(tensors, block, table):
    out = {}
    for key, value in tensors.items():
        if key.startswith("blocks."):
            _, i, rest = key.split(".", 2)
            stem = next((k for k in table if rest == k or rest.startswith(k + ".")), "")
            out[f"{block}.{i}.{table.get(stem, '')}{rest.removeprefix(stem)}"] = value
        else:
            stem = next(k for k in OUTER if key == k or key.startswith(k + "."))
            out[OUTER[stem] + key.removeprefix(stem)] = value
    return out


def with_class_position(tensors):
    """As DINOv2 with registers keeps it: a row of positions for the class token."""
    row = np.full_like(tensors["cls_token"], 0.25)
    return tensors | {
        "cls_token": tensors["cls_token"] - row,
        "pos_embed": np.concatenate([row, tensors["pos_embed"]], axis=1),
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("naming", NAMINGS)
def test_transformers(naming):
    a, block, table = NAMINGS[naming]
    expected = numpy_vit.tensors(a)
    theirs = with_class_position(expected) if a.registers else expected
    theirs = split(theirs, "attn.qkv", ("attn.q", "attn.k", "attn.v"))
    if "mlp.fc1_g" in table:
        theirs = split(theirs, "mlp.fc1", ("mlp.fc1_g", "mlp.fc1_x"))
    assert_same(names.to_timm(renamed(theirs, block, table), "file"), expected)


def test_meta_in_a_nest_with_chunks_of_blocks():
    expected = numpy_vit.tensors(SWIGLU)
    theirs = {
        "teacher.backbone."
        + key.replace("reg_token", "register_tokens")
        .replace("mlp.fc1", "mlp.w12")
        .replace("mlp.fc2", "mlp.w3")
        .replace("blocks.", "blocks.0."): value
        for key, value in with_class_position(expected).items()
    }
    theirs["teacher.dino_head.mlp.0.weight"] = np.zeros(1)
    theirs |= {name.replace("teacher.", "student."): value for name, value in theirs.items()}
    assert_same(names.to_timm(weights.strip(theirs).tensors, "file"), expected)


def test_timm_as_it_is_and_unpacked_and_as_a_part():
    expected = numpy_vit.tensors(SWIGLU)
    assert_same(names.to_timm(expected, "file"), expected)
    unpacked = split(expected, "mlp.fc1", ("mlp.fc1_g", "mlp.fc1_x"))
    assert_same(names.to_timm(unpacked, "file"), expected)
    part = {f"module.visual.trunk.{key}": value for key, value in expected.items()}
    assert_same(names.to_timm(part | {"module.text.proj": np.zeros(1)}, "file"), expected)


def test_registers_of_timm_keep_their_positions():
    a = dataclasses.replace(SWIGLU, embed_prefix=True)
    assert_same(names.to_timm(numpy_vit.tensors(a), "file"), numpy_vit.tensors(a))


def test_one_vit_alone():
    one = {"cls_token": np.zeros(1)}
    assert names.has_vit(one) and not names.has_vit({"conv1.weight": np.zeros(1)})
    with pytest.raises(InputError, match=r"file: .*found none among 1"):
        names.to_timm({"conv1.weight": np.zeros(1)}, "file")
    with pytest.raises(InputError, match=r"found a\.cls_token, b\.cls_token among 2"):
        names.to_timm({"a.cls_token": one, "b.cls_token": one}, "file")
