"""The ViT against timm and transformers on random weights; the giants at two blocks."""

from __future__ import annotations

import jax
import numpy as np
import optional
import pytest

from stfm_jax.encoders import known, names, vit
from stfm_jax.encoders.configs import Config, huggingface_config, timm_config

pytestmark = pytest.mark.parity

REGISTERS = {"reg_tokens": 4, "no_embed_class": True}
# timm's name, arguments (with SwiGLU as "swiglu"), number of keys, of parameters.
TIMM = {
    "UNI": ("vit_large_patch16_224", {"init_values": 1e-5}, 342, 303_350_784),
    "UNI2-h": (
        "vit_giant_patch14_224",
        {
            "embed_dim": 1536,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "swiglu": True,
            "reg_tokens": 8,
            "no_embed_class": True,
        },
        343,
        681_394_176,
    ),
    "GigaPath": (
        "vit_giant_patch14_dinov2",
        {"patch_size": 16, "img_size": 224},
        566,
        1_134_953_984,
    ),
    "Virchow": (
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "mlp_ratio": 5.3375, "swiglu": True},
        454,
        631_229_184,
    ),
    "Virchow2": (
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "mlp_ratio": 5.3375, "swiglu": True, "reg_tokens": 4},
        455,
        631_239_424,
    ),
    "H-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224}, 567, 1_134_774_272),
    "H0-mini": (
        "vit_base_patch14_reg4_dinov2",
        {"img_size": 224, "mlp_ratio": 5.33334, "swiglu": True},
        175,
        85_739_520,
    ),
    "Lunit-S16": ("vit_small_patch16_224", {}, 150, 21_665_664),
    "Lunit-S8": ("vit_small_patch8_224", {}, 150, 21_670_272),
    "Kaiko-B8": ("vit_base_patch8_224", {}, 150, 85_807_872),
    "Kaiko-L14": ("vit_large_patch14_reg4_dinov2", {}, 343, 304_370_688),
}
TRANSFORMERS = {
    "Phikon": ("ViT", {"hidden_size": 768, "num_attention_heads": 12}),
    "Phikon-v2": ("Dinov2", {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 16}),
    "Midnight-12k": (
        "Dinov2",
        {
            "hidden_size": 1536,
            "num_attention_heads": 24,
            "patch_size": 14,
            "image_size": 518,
            "use_swiglu_ffn": True,
        },
    ),
    "Hibou-B": (
        "Dinov2WithRegisters",
        {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "patch_size": 14,
            "image_size": 224,
            "use_swiglu_ffn": True,
        },
    ),
}
SIZES = {row.name: row.preprocess.crop for row in known.TABLE}


def made_by_timm(name, **more):
    timm = optional.timm()
    kind, args, *_ = TIMM[name]
    args = {"num_classes": 0, "dynamic_img_size": True, **args, **more}
    if args.pop("swiglu", False):
        import torch

        args |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return timm.create_model(kind, **args).eval()


def randomise(model):
    """Scales and biases too, which start at one value."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        matrix = tensor.ndim > 1 and "token" not in key and "pos" not in key
        spread = tensor[0].numel() ** -0.5 if matrix else 0.2
        centre = float(
            ("norm" in key and key.endswith("weight")) or "gamma" in key or "lambda" in key
        )
        tensor.normal_(centre, spread, generator=generator)


def numpy_of(model):
    return {key: value.numpy() for key, value in model.state_dict().items()}


def error(tensors, config, expected_of, side, blocks=2):
    """Largest difference of the tokens over the reference's standard deviation."""
    import torch

    named = names.to_timm(tensors, "file")
    a = vit.architecture(named, config, "file")
    assert a.depth == blocks
    images = np.random.default_rng(0).normal(size=(1, side, side, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = expected_of(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    found = jax.jit(vit.tokens, static_argnums=2)(vit.params(named, a, "file"), images, a)
    worst = float(np.abs(found - expected).max() / expected.std())
    print(f"{worst:.1e}")
    return worst


@pytest.mark.parametrize("name", TIMM)
def test_tokens_of_timm(name):
    model = made_by_timm(name, depth=2)
    randomise(model)
    config = timm_config({"architecture": TIMM[name][0], "model_args": TIMM[name][1]})
    config_of_two = {**config.stated, "depth": 2}
    config = Config(heads=config.heads, stated=config_of_two)
    assert error(numpy_of(model), config, model.forward_features, SIZES[name]) < 1e-5


@pytest.mark.parametrize("name", TIMM)
def test_keys_and_parameters_at_full_size(name):
    """On torch's meta device: shapes without memory."""
    optional.timm()
    import torch

    with torch.device("meta"):
        model = made_by_timm(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    a = vit.architecture(tensors, Config(), "file")
    assert vit.shapes(a) == shapes
    assert len(shapes) == TIMM[name][2]
    assert sum(np.prod(shape) for shape in shapes.values()) == TIMM[name][3]
    assert a.heads == model.blocks[0].attn.num_heads
    assert known.signature(a) == next(r.shape for r in known.TABLE if r.name == name)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_tokens_of_transformers(name, tmp_path):
    transformers = optional.transformers()
    kind, args = TRANSFORMERS[name]
    config = getattr(transformers, f"{kind}Config")(num_hidden_layers=2, **args)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    randomise(model)
    side = args.get("image_size", 224)  # at another, positions are resampled otherwise
    worst = error(
        numpy_of(model),
        huggingface_config(config.to_dict(), None),
        lambda x: model(x).last_hidden_state,
        side,
    )
    assert worst < 1e-5


@pytest.mark.parametrize("name", ["Kaiko-L14", "UNI"])
def test_other_sizes_of_images(name):
    model = made_by_timm(name, depth=1)
    randomise(model)
    config = Config(heads=16)
    assert error(numpy_of(model), config, model.forward_features, 336, blocks=1) < 1e-5
