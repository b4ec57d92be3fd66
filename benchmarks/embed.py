"""How quickly are patches embedded, and in how much memory?

    python benchmarks/embed.py [--n=64] [--what=stain_texture,uni] [--impl=stfm,torch]

Each row is an encoder on the same patches of simulated tissue (0.5 um a pixel), read before: `what`
is its name, `n` the patches, `spots_per_second` patches a second. impl "stfm" is
`Encoder.embed_slide`, the whole recipe from 8-bit patches: for efficientnet_lite0 two fields of
view in two quarter turns, four passes a patch. "torch" is timm's network with the same weights and
recipe, in batches of TORCH_BATCH, where torch and timm are installed; there is none for
stain_texture. Weights are random; no figure depends on them. The outputs of both are compared
before anything is timed. `peak_gib` is all that the process held.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import harness
import numpy as np
from harness import Job, Row

SIZES = (32,)
CONVOLUTIONAL = {"efficientnet_lite0": "tf_efficientnet_lite0", "resnet18-ciga": "resnet18"}
CONVOLUTIONAL |= {"resnet50-hest": "resnet50"}  # by timm's names
QUICK = ("stain_texture", *CONVOLUTIONAL, "lunit-s16", "phikon", "uni")
LARGE = ("h0-mini", "virchow", "virchow2", "uni2-h", "gigapath", "h-optimus-0")
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}  # by width
TORCH_BATCH = 16
BOUND = 1e-3  # of outputs that are to be the same, over their standard deviation
COLUMNS = (
    "what", "impl", "n", "spots_per_second", "seconds", "first_seconds", "peak_gib", "over_torch",
    "device",
)  # fmt: skip


def job(order: Row) -> Job:
    """A worker's part."""
    import jax
    import problem

    encoder, source = _encoder(order["what"]), _Patches(order["n"])
    for field in encoder.fields_um:
        source.read(np.arange(order["n"]), field)
    if order["impl"] == "torch":
        embed = _torch(order["what"], encoder)
        facts = {"device": harness.cpu_name() if _torch_device() == "cpu" else "cuda"}
    else:
        jax.block_until_ready(getattr(encoder, "params", None))
        facts = problem.jax_facts()

        def embed(source, n):
            return encoder.embed_slide(source, np.zeros((n, 2)))

    def run():
        features = embed(source, order["n"])
        output = [float(value) for value in features[0, :64]]
        return {"output": output, "evaluations": None, "width": features.shape[1], **facts}

    return run


class _Patches:
    """Patches of simulated tissue, kept once they were read."""

    um_per_px = 0.5

    def __init__(self, n: int):
        from stfm_jax.data.simulate import TissueParams, volume

        tissue = TissueParams(num_sections=1, spots=n + 20, num_genes=30, um_per_px=self.um_per_px)
        self._patches = volume(tissue, seed=0).slides[0].patches
        self._kept: dict[float, np.ndarray] = {}

    def read(self, indices: np.ndarray, size_um: float) -> np.ndarray:
        if size_um not in self._kept:
            self._kept[size_um] = self._patches.read(indices, size_um)
        return self._kept[size_um][indices]


def _encoder(name: str):
    """One of ours with random weights."""
    from stfm_jax.encoders import known, loading, networks

    if name == loading.STAIN_TEXTURE:
        return loading.load(name)
    (row,) = (row for row in known.TABLE if row.name.lower() == name.replace("_", "-"))
    field = (row.preprocess.resize * row.um_per_px,)
    common = {"name": name, "fields_um": field, "images": row.preprocess, "sha256": "0" * 16}
    if name == loading.EFFICIENTNET:
        common |= {"fields_um": (160.0, 320.0), "tensors": _convolutional(name)}
        return networks.EfficientNet(**common)
    if name in CONVOLUTIONAL:
        stages = 3 if name.startswith("resnet50") else 4
        return networks.ResNet(**common, tensors=_convolutional(name), stages=stages)
    tensors, a = _vit(row)
    return networks.Vit(**common, tensors=tensors, architecture=a, pool=row.pool)


def _vit(row):
    """Random tensors of a row's shape, and its architecture."""
    from stfm_jax.encoders import vit

    shape = row.shape
    grid = row.preprocess.crop // shape.patch
    a = vit.Architecture(
        patch=shape.patch,
        width=shape.width,
        depth=shape.depth,
        heads=HEADS[shape.width],
        hidden=shape.hidden,
        swiglu=shape.swiglu,
        layer_scale=shape.layer_scale,
        registers=shape.registers,
        embed_prefix=shape.position_rows != grid**2,
        grid=grid,
    )
    return _random(vit.shapes(a)), a


def _random(shapes) -> dict[str, np.ndarray]:
    """Float32 tensors, so spread that every layer's output is of the size of its input."""
    rng, found = np.random.default_rng(0), {}
    for key, shape in shapes.items():
        if key.endswith(("running_var", "gamma")) or (len(shape) == 1 and key.endswith("weight")):
            found[key] = np.ones(shape, np.float32)
        else:
            spread = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
            found[key] = rng.standard_normal(shape, np.float32) * np.float32(spread)
    return found


def _convolutional(name: str) -> dict[str, np.ndarray]:
    """Random tensors under the names of ours."""
    from stfm_jax.encoders import efficientnet, resnet

    if name in ("resnet18-ciga", "resnet50-hest"):
        depths, bottleneck = ((2, 2, 2, 2), False) if "18" in name else ((3, 4, 6, 3), True)
        last = "conv3" if bottleneck else "conv2"
        blocks = [f"layer{s}.{b}." for s, n in enumerate(depths, 1) for b in range(n)]
        hints = {f"{b}{conv}.weight": 0 for b in blocks for conv in ("conv1", last)}
        hints["conv1.weight"] = np.empty((64, 3, 7, 7))
        layers = resnet.layers(hints, resnet.STAGES)
    else:
        layers = efficientnet.layers(efficientnet.LITE0)
    shapes = {}
    for layer in layers:
        shapes[f"{layer.conv}.weight"] = layer.shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{layer.norm}.{part}"] = layer.shape[:1]
    return _random(shapes)


# The reference.


def _torch(name: str, encoder) -> Callable:
    """timm's network with the encoder's weights: (source, n) -> features [n, f]."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    import optional
    import torch

    timm, device = optional.timm(), _torch_device()
    if name in CONVOLUTIONAL:
        model = timm.create_model(CONVOLUTIONAL[name], num_classes=0).eval()
        trained = [k for k in model.state_dict() if not k.endswith("num_batches_tracked")]
        if name == "efficientnet_lite0":  # other names, the same order
            weights = dict(zip(trained, encoder.tensors.values(), strict=True))
        else:
            weights = encoder.tensors
    else:
        model = _timm_vit(timm, encoder.architecture).eval()
        weights = encoder.tensors
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in weights.items()}
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    model = model.to(device)
    features = {"efficientnet_lite0": _of_efficientnet, "resnet18-ciga": _of_resnet}
    features |= {"resnet50-hest": _of_resnet}
    apply = features.get(name, _of_vit)
    mean, std = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (encoder.preprocess.mean, encoder.preprocess.std)
    )

    @torch.inference_mode()
    def embed(source, n):
        views = []
        for field in encoder.fields_um:
            images = source.read(np.arange(n), field)
            batches = [images[i : i + TORCH_BATCH] for i in range(0, n, TORCH_BATCH)]
            views.append(np.concatenate([one(batch) for batch in batches]))
        return np.concatenate(views, axis=1)

    def one(images):
        x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        side, crop = encoder.preprocess.resize, encoder.preprocess.crop
        if x.shape[-1] != side:
            mode = encoder.preprocess.interpolation
            x = torch.nn.functional.interpolate(x, (side, side), mode=mode, antialias=True)
        edge = (side - crop) // 2
        x = x[..., edge : edge + crop, edge : edge + crop]
        return apply(model, (x.float() / 255 - mean) / std, encoder).cpu().numpy()

    return embed


def _timm_vit(timm, a):
    import torch

    swiglu = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return timm.models.vision_transformer.VisionTransformer(
        img_size=a.grid * a.patch,
        patch_size=a.patch,
        embed_dim=a.width,
        depth=a.depth,
        num_heads=a.heads,
        mlp_ratio=(a.hidden * (2 if a.swiglu else 1) + 0.5) / a.width,
        init_values=1e-5 if a.layer_scale else None,
        reg_tokens=a.registers,
        no_embed_class=not a.embed_prefix,
        num_classes=0,
        **(swiglu if a.swiglu else {}),
    )


def _of_vit(model, x, encoder):
    import torch

    tokens = model.forward_features(x)
    if encoder.pool == "cls":
        return tokens[:, 0]
    return torch.cat([tokens[:, 0], tokens[:, encoder.architecture.prefix :].mean(1)], 1)


def _of_resnet(model, x, encoder):
    x = model.maxpool(model.act1(model.bn1(model.conv1(x))))
    for stage in range(1, encoder.stages + 1):
        x = getattr(model, f"layer{stage}")(x)
    return x.mean((2, 3))


def _of_efficientnet(model, x, encoder):
    import torch

    from stfm_jax.encoders import efficientnet

    windows = efficientnet.windows

    def pooled(x):
        maps, x = [], model.bn1(model.conv_stem(x))
        for i, block in enumerate(block for stage in model.blocks for block in stage):
            x = block(x)
            maps += [x] if i in efficientnet.LITE0.taps else []
        maps.append(model.bn2(model.conv_head(x)))
        means = [
            torch.einsum("bchw,hwk->bkc", m, torch.from_numpy(windows(m.shape[-1])).to(m.device))
            for m in maps
        ]
        return torch.cat([mean.flatten(1) for mean in means], 1)

    return (pooled(x) + pooled(torch.rot90(x, dims=(2, 3)))) / 2


def _torch_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# The driver.


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    rows: list[Row] = []
    for what in options.what:
        for n in options.sizes:
            orders = [
                {"what": what, "impl": impl, "n": n, "devices": 1}
                for impl in options.impl
                if impl == "stfm" or _has_torch(what)
            ]
            measured = harness.measure(__file__, orders, options.repeats)
            compare(measured)
            harness.report(options, measured, COLUMNS)
            rows += measured
    print(harness.table(rows, COLUMNS))
    panels = {"patches": harness.curves(rows, "seconds", lambda r: f"{r['what']} {r['impl']}")}
    harness.plot(options.figure, panels, "seconds", f"Embedding on {rows[0]['device']}")


def _has_torch(what: str) -> bool:
    return what != "stain_texture" and all(map(find_spec, ("torch", "timm")))


def compare(rows: Sequence[Row]) -> None:
    """Says how much quicker ours is than torch, where both embedded the same patches alike.

    Raises:
      RuntimeError: they gave different features.
    """
    outputs = {row["impl"]: np.array(row.pop("output")) for row in rows}
    if outputs.keys() != {"stfm", "torch"}:
        return
    ours, theirs = outputs["stfm"], outputs["torch"]
    difference = float(np.abs(ours - theirs).max() / theirs.std())
    if not difference < BOUND:
        raise RuntimeError(f"{rows[0]['what']}: ours and torch's differ by {difference:.1e}.")
    rate = {row["impl"]: row["spots_per_second"] for row in rows}
    for row in rows:
        row["difference"] = difference
        row["over_torch"] = row["spots_per_second"] / rate["torch"]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = harness.parser("embed", __doc__.splitlines()[0], SIZES)
    parser.add_argument("--what", type=harness.names(*QUICK, *LARGE), default=list(QUICK))
    parser.add_argument("--impl", type=harness.names("stfm", "torch"), default=["stfm", "torch"])
    parser.set_defaults(repeats=2)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    harness.entry(main, job)
