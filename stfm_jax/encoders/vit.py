"""Vision transformers as pathology models use them, as pure functions of a tree of arrays.

Pre-norm blocks on one class token, registers and the patches of an image, in that order [timm
1.0.31]. `architecture` reads the form from the shapes of tensors under timm's names (`names.py`
gives them), `shapes` is its inverse and the check, `params` lays the arrays out. Which model it is,
its images and its pooling are `known.py`, `preprocess.py` and `configs.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.encoders.configs import Config
from stfm_jax.encoders.weights import Tensors
from stfm_jax.errors import InputError

Pool = Literal["cls", "cls_mean"]
Precision = Literal["float32", "bfloat16"]

# What a file may hold beside the trunk, and is not read.
DROPPED = ("mask_token", "head.", "dino_head.", "pooler.", "classifier.")
# Heads are in no shape: these are the usual ones, for files that come without a config.
_USUAL_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The form of a ViT; hashable, a static argument of jitted functions."""

    patch: int  # side of a patch, pixels
    width: int
    depth: int
    heads: int
    hidden: int  # columns of fc2; fc1 has twice as many rows in a SwiGLU
    swiglu: bool  # else GELU, the exact one
    layer_scale: bool
    registers: int
    embed_prefix: bool  # positions are added to class token and registers too
    grid: int  # patches along a side that the positions were trained on
    eps: float = 1e-6  # of the layer norms

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + self.registers

    @property
    def position_rows(self) -> int:
        """Rows of `pos_embed`."""
        return self.grid**2 + self.prefix * self.embed_prefix


class Params(NamedTuple):
    """Arrays of a ViT. Matrices may be bfloat16, all else is float32."""

    kernel: jax.Array  # [d, p, p, 3]
    bias: jax.Array  # [d]
    prefix: jax.Array  # [1 + registers, d], their positions added
    positions: jax.Array  # [grid, grid, d]
    blocks: dict[str, jax.Array]  # timm's names behind `blocks.N.`, each [depth, ...]
    norm: tuple[jax.Array, jax.Array]  # [d] scale and bias


# --- form and arrays ------------------------------------------------------------------------------


def architecture(tensors: Tensors, config: Config, where: str) -> Architecture:
    """The architecture of tensors under timm's names.

    Args:
      tensors: arrays, of which only shapes are read.
      config: gives heads and eps, which no shape tells; what else it states is compared.
      where: the file, for messages.

    Raises:
      InputError: a tensor that every ViT has is missing, or config and tensors disagree.
    """
    width, _, patch, _ = _shape(tensors, "patch_embed.proj.weight", 4, where)
    registers = _shape(tensors, "reg_token", 3, where)[1] if "reg_token" in tensors else 0
    rows = _shape(tensors, "pos_embed", 3, where)[1]
    embed_prefix, grid = _grid(rows, 1 + registers, where)
    hidden = _shape(tensors, "blocks.0.mlp.fc2.weight", 2, where)[1]
    found = Architecture(
        patch=patch,
        width=width,
        depth=len({m[1] for k in tensors if (m := re.match(r"blocks\.(\d+)\.", k))}),
        heads=_heads(width, config, where),
        hidden=hidden,
        swiglu=_shape(tensors, "blocks.0.mlp.fc1.weight", 2, where)[0] == 2 * hidden,
        layer_scale="blocks.0.ls1.gamma" in tensors,
        registers=registers,
        embed_prefix=embed_prefix,
        grid=grid,
        eps=config.eps,
    )
    _compare(found, config, where)
    return found


def shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor of a file and its shape, under timm's names."""
    d, p = a.width, a.patch
    outer = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, a.position_rows, d),
        "patch_embed.proj.weight": (d, 3, p, p),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    if a.registers:
        outer["reg_token"] = (1, a.registers, d)
    block = _block_shapes(a)
    return outer | {f"blocks.{i}.{k}": s for i in range(a.depth) for k, s in block.items()}


def params(
    tensors: Tensors,
    a: Architecture,
    where: str,
    precision: Precision = "float32",
) -> Params:
    """The arrays of a ViT, laid out for `tokens`.

    Args:
      tensors: under timm's names.
      a: what `architecture` read from them.
      where: the file, for messages.
      precision: type of the matrices, which `tokens` computes its products in. bfloat16 halves
        the memory; it moved the tokens of a small ViT by less than 2e-2 of their standard deviation
        (tests/encoders/test_vit.py).

    Raises:
      InputError: naming the first tensor that is missing, has another shape, or is unknown.
    """
    check(tensors, a, where)

    def array(key: str) -> np.ndarray:
        return np.asarray(tensors[key], np.float32)

    def stacked(name: str) -> jax.Array:
        layers = np.stack([array(f"blocks.{i}.{name}") for i in range(a.depth)])
        return jnp.asarray(layers, precision if layers.ndim == 3 else np.float32)

    positions, prefix = array("pos_embed")[0], array("cls_token")[0]
    if a.registers:
        prefix = np.concatenate([prefix, array("reg_token")[0]])
    if a.embed_prefix:
        prefix, positions = prefix + positions[: a.prefix], positions[a.prefix :]
    return Params(
        kernel=jnp.asarray(array("patch_embed.proj.weight").transpose(0, 2, 3, 1), precision),
        bias=jnp.asarray(array("patch_embed.proj.bias")),
        prefix=jnp.asarray(prefix),
        positions=jnp.asarray(positions.reshape(a.grid, a.grid, a.width)),
        blocks={name: stacked(name) for name in _block_shapes(a)},
        norm=(jnp.asarray(array("norm.weight")), jnp.asarray(array("norm.bias"))),
    )


def _block_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    d, rows = a.width, a.hidden * (2 if a.swiglu else 1)
    linear = {"attn.qkv": (3 * d, d), "attn.proj": (d, d)}
    linear |= {"mlp.fc1": (rows, d), "mlp.fc2": (d, a.hidden)}
    out = {f"{n}.{part}": (d,) for n in ("norm1", "norm2") for part in ("weight", "bias")}
    for name, shape in linear.items():
        out |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    if a.layer_scale:
        out |= {"ls1.gamma": (d,), "ls2.gamma": (d,)}
    return out


def _shape(tensors, key: str, ndim: int, where: str) -> tuple[int, ...]:
    if key not in tensors:
        raise InputError(
            f"{where}: expected a ViT with a tensor {key!r}, found none among {len(tensors)}; "
            "models of another kind are not read: give their embeddings instead."
        )
    shape = tensors[key].shape
    if len(shape) != ndim:
        raise InputError(
            f"{where}: expected {key!r} with {ndim} axes, found {list(shape)}; get the file again."
        )
    return shape


def _grid(rows: int, prefix: int, where: str) -> tuple[bool, int]:
    """Whether `rows` positions begin with those of the prefix, and the side of their grid."""
    for embed_prefix in (False, True):
        patches = rows - prefix * embed_prefix
        if patches > 0 and math.isqrt(patches) ** 2 == patches:
            return embed_prefix, math.isqrt(patches)
    raise InputError(
        f"{where}: expected 'pos_embed' of a square grid, with or without {prefix} tokens before "
        f"it, found {rows} rows; other grids are not read."
    )


def _heads(width: int, config: Config, where: str) -> int:
    heads = config.heads or _USUAL_HEADS.get(width)
    if heads is None or width % heads:
        raise InputError(
            f"{where}: expected a number of heads that divides the width {width}, found "
            f"{heads or 'none'}; write num_heads into the config.json beside it."
        )
    return heads


def _compare(found: Architecture, config: Config, where: str) -> None:
    for name, stated in config.stated.items():
        if (has := getattr(found, name)) != stated:
            raise InputError(
                f"{where}: its config.json says {name} {stated}, but the tensors have {has}; get "
                "both files from the same release."
            )
    if not found.swiglu and config.activation not in (None, "gelu"):
        raise InputError(
            f"{where}: its config.json says activation {config.activation!r}, but such a ViT is "
            "computed with 'gelu' only; give its embeddings instead."
        )


def check(tensors: Tensors, a: Architecture, where: str) -> None:
    """Raises InputError naming the first tensor that is missing, misshapen or unknown."""
    expected = shapes(a)
    for key, shape in expected.items():
        found = list(tensors[key].shape) if key in tensors else "none"
        if found != list(shape):
            raise InputError(
                f"{where}: expected a tensor {key!r} {list(shape)}, found {found}; the file is "
                "damaged, or of a ViT that is built otherwise."
            )
    for key in tensors:
        if key not in expected and not key.startswith(DROPPED):
            raise InputError(
                f"{where}: expected the tensors of a plain ViT, found {key!r} "
                f"{list(tensors[key].shape)} beside them; ViTs that are built otherwise are not "
                "read: give their embeddings instead."
            )


# --- the network ----------------------------------------------------------------------------------


def tokens(params: Params, images: jax.Array, a: Architecture) -> jax.Array:
    """Tokens [b, 1 + registers + patches, d] float32 behind the last norm.

    Args:
      params: arrays.
      images: [b, H, W, 3] float32, normalised; H and W are multiples of the patch.
      a: their architecture. Positions of another grid than the images' are resampled bicubically
        with antialias, as timm and the DINOv2 models with registers do; DINOv2 without registers
        was published without antialias.

    Raises:
      InputError: images that patches do not tile.
    """
    # The default on accelerators rounds factors to 10 bits or less.
    with jax.default_matmul_precision("highest"):
        patches = _linear(_patches(images, a.patch), _flat(params.kernel), params.bias)
        rows, columns = (side // a.patch for side in images.shape[1:3])
        patches = patches + _resampled(params.positions, rows, columns).reshape(-1, a.width)
        prefix = jnp.broadcast_to(params.prefix, (len(images), a.prefix, a.width))
        x = jnp.concatenate([prefix, patches], axis=1)
        x, _ = jax.lax.scan(lambda x, block: (_block(x, block, a), None), x, params.blocks)
        return _norm(x, *params.norm, a.eps)


def pool(tokens: jax.Array, a: Architecture, how: Pool) -> jax.Array:
    """Features [b, f]: the class token, or it and the mean of the patches' tokens (f = 2 d)."""
    cls = tokens[:, 0]
    if how == "cls":
        return cls
    return jnp.concatenate([cls, tokens[:, a.prefix :].mean(axis=1)], axis=1)


def _patches(images: jax.Array, patch: int) -> jax.Array:
    """[b, patches, patch * patch * 3], row by row."""
    b, height, width, _ = images.shape
    if height % patch or width % patch:
        raise InputError(
            f"expected images whose sides are multiples of {patch} pixels, found {height} x "
            f"{width}; resize them."
        )
    tiles = images.reshape(b, height // patch, patch, width // patch, patch, 3)
    return tiles.swapaxes(2, 3).reshape(b, -1, patch * patch * 3)


def _flat(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(len(kernel), -1)


def _resampled(positions: jax.Array, rows: int, columns: int) -> jax.Array:
    shape = (rows, columns, positions.shape[-1])
    if shape == positions.shape:
        return positions
    return jax.image.resize(positions, shape, "cubic", antialias=True)


def _block(x: jax.Array, w: dict[str, jax.Array], a: Architecture) -> jax.Array:
    """One block on x [b, t, d]; `w` without the axis of layers."""
    h = _norm(x, w["norm1.weight"], w["norm1.bias"], a.eps)
    h = _attention(_linear(h, w["attn.qkv.weight"], w["attn.qkv.bias"]), w["attn.proj.weight"], a)
    h = h + w["attn.proj.bias"]
    x = x + (h * w["ls1.gamma"] if a.layer_scale else h)
    h = _norm(x, w["norm2.weight"], w["norm2.bias"], a.eps)
    h = _activation(_linear(h, w["mlp.fc1.weight"], w["mlp.fc1.bias"]), a.swiglu)
    h = _linear(h, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
    return x + (h * w["ls2.gamma"] if a.layer_scale else h)


def _norm(x, scale, bias, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * scale + bias


def _linear(x, weight, bias):
    """x [..., i] by weight [o, i], in the weight's type, summed in float32."""
    x = x.astype(weight.dtype)
    return jnp.einsum("...i,oi->...o", x, weight, preferred_element_type=jnp.float32) + bias


def _attention(qkv, out, a: Architecture):
    """Self-attention of qkv [b, t, 3 d] and its projection `out` [d, d], without bias."""
    b, t, _ = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(b, t, 3, a.heads, -1).astype(out.dtype), 2, 0)
    mixed = jax.nn.dot_product_attention(q, k, v).reshape(b, t, -1)
    return _linear(mixed, out, 0.0)


def _activation(h, swiglu: bool):
    if not swiglu:
        return jax.nn.gelu(h, approximate=False)
    gate, value = jnp.split(h, 2, axis=-1)
    return jax.nn.silu(gate) * value
