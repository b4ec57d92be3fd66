"""Networks that ours are compared with: each learns, and what it learns is what it is for."""

from __future__ import annotations

import dataclasses

import encoder_folders
import jax
import numpy as np
import pytest
import tiny
import tiny_stack

from configs import base
from stfm_jax.data.expression import expression
from stfm_jax.data.lattice import spot_spacing_um
from stfm_jax.data.simulate import TissueParams, volume
from stfm_jax.errors import InputError
from stfm_jax.models import bleep, network, regression, table
from stfm_jax.models.method import Genes, NotApplicable, Request, Section, gathered
from stfm_jax.models.network import Rows, SlideSteps, SpotSteps
from stfm_jax.ops import metrics
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.runtime.files import read_json
from stfm_jax.train.stages import Run, TrainSettings

NETWORKS = ("stnet", "bleep", "histogene", "triplex", "gigapath_slide")
OF_SLIDES = NETWORKS[2:]


def run_of(folder, config, name: str) -> Run:
    return Run(folder, name, 0, make_mesh(1), TrainSettings.of(config))


def predicted(method, state, slide, genes: Genes) -> np.ndarray:
    request = Request(genes, 0, 2, 1, make_mesh(1))
    return gathered(method.predict(state, Section(slide), request).mean, slide.num_spots)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns(name, tmp_path):
    """Simulated tissue: the section that was left out, clearly above the training mean."""
    config = tiny_stack.config(
        train__epochs=40,
        train__learning_rate=3e-3,
        train__checkpoint_every=40,
        model__components=12,
    )
    slides = tiny.slides(registered=True)
    genes = Genes(*(tuple(tiny_stack.genes(slides)) for _ in range(2)))
    method = table.build(name, config)
    state = method.fit([Section(s) for s in slides[1:]], genes, run_of(tmp_path, config, name))
    true = expression(slides[0], genes.scored, "log1p")
    found = predicted(method, state, slides[0], genes)
    assert metrics.mean_over_genes(metrics.pearson(found, true))[0] > 0.25
    assert 0 < state.epochs <= 40


def test_bleep_finds_its_own_spots(tmp_path):
    """Of 64 training spots the nearest expression to each image is its own."""
    config = tiny_stack.config(
        train__epochs=300,
        train__select=False,
        train__learning_rate=1e-3,
        train__checkpoint_every=300,
        model__components=12,
        bleep__dropout=0.0,
    )
    slides = [s.subset(np.arange(s.num_spots) < 32) for s in tiny.slides(registered=True)[:2]]
    genes = Genes(*(tuple(tiny_stack.genes(slides)) for _ in range(2)))
    method = table.build("bleep", config)
    state = method.fit([Section(s) for s in slides], genes, run_of(tmp_path, config, "bleep"))
    x = [regression.features_of(method.settings, state.transform, s, False) for s in slides]
    rows = Rows(np.concatenate(x), state.memory["expression"], (), np.ones(64, bool))
    images, _ = bleep.projected(method, state.params, rows)
    nearest = np.argmax(images @ state.memory["keys"].T, axis=1)
    assert np.mean(nearest == np.arange(64)) > 0.95


def step_of(method, num_spots: int, training: bool):
    """What is computed of a square of spots, compiled; 20 features, 8 genes."""
    index = np.arange(num_spots)
    place = method.placed(100.0 * np.stack([index % 32, index // 32], axis=1))
    x, y = np.zeros((num_spots, 20), np.float32), np.zeros((num_spots, 8), np.float32)
    rows = Rows(x, y, place, np.ones(num_spots, bool))
    params = jax.eval_shape(lambda: method.init(jax.random.key(0), (), rows))
    if not training:
        apply = jax.jit(lambda params, rows: method.module(8).apply(params, rows, False))
        return apply.lower(params, rows).compile()
    batch, key = jax.tree.map(lambda a: a[None], rows), jax.random.key(0)
    gradient = jax.jit(jax.value_and_grad(lambda p, b, k: method.loss(p, (), b, k), has_aux=True))
    return gradient.lower(params, batch, key).compile()


@pytest.mark.parametrize("name", OF_SLIDES)
@pytest.mark.parametrize("training", [False, True])
def test_memory_is_what_it_says(name, training):
    """By what XLA will take, of sizes that matter: at most a fifth more, and not thrice as much."""
    method = table.build(name, base.get_config())
    taken = step_of(method, 2048, training).memory_analysis().temp_size_in_bytes
    assert taken < 1.2 * method.working_bytes(2048, training) < 3 * taken


@pytest.mark.parametrize("name", OF_SLIDES)
def test_a_slide_too_large_is_left_out_with_the_memory_it_needs(name, tmp_path, monkeypatch):
    """Before anything is computed, in training and in prediction."""
    config = tiny_stack.config()
    slides = tiny.slides()
    genes = Genes(*(tuple(tiny_stack.genes(slides)) for _ in range(2)))
    method = table.build(name, config)
    monkeypatch.setattr(network, "memory_of_computations", lambda: 1 << 10)
    needs = rf"{name} sees its \d+ spots together, .* GiB of memory in {{}}; 0\.0 GiB are free"
    with pytest.raises(NotApplicable, match=needs.format("training")):
        method.fit([Section(s) for s in slides[1:]], genes, run_of(tmp_path, config, name))
    assert not list(tmp_path.iterdir())
    with pytest.raises(NotApplicable, match=needs.format("prediction")):
        predicted(method, None, slides[0], genes)


def test_a_row_that_does_not_fit_leaves_the_others(tmp_path, monkeypatch):
    """And is tried again by the same command, on another machine say."""
    tiny.write(tmp_path, tiny.slides())
    workdir = tmp_path / "work"
    made = tiny.config(data__dir=str(tmp_path), methods=("mean", "histogene"), train__epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr(network, "memory_of_computations", lambda: 1 << 10)
        assert tiny.run(made, workdir) == 0
    assert read_json(workdir / "metrics.json")["methods"].keys() == {"mean"}
    assert tiny.run(made, workdir) == 0
    assert read_json(workdir / "metrics.json")["methods"].keys() == {"mean", "histogene"}


def test_positions_beyond_the_last_are_said(caplog):
    index = np.array([*np.ndindex(6, 6), (9, 2)])
    method = table.build("histogene", tiny_stack.config(histogene__positions=8))
    with caplog.at_level("WARNING", logger="stfm_jax"):
        (place,) = method.placed(100.0 * index + [500.0, 20.0])
    np.testing.assert_array_equal(place, np.minimum(index, 7))
    assert "1 of 37 spots of a slide lie beyond 8 positions" in caplog.text
    assert "config.histogene.positions=10 for places" in caplog.text


@pytest.mark.parametrize("kind", ["square", "hex", "random"])
def test_triplex_sees_neighbours_of_every_lattice(kind):
    """Within two steps; where spots lie on none, of a grid of their spacing."""
    tissue = volume(TissueParams(num_sections=1, spots=150, num_genes=8, lattice=kind), seed=0)
    coords = tissue.slides[0].coords_um
    around, there = table.build("triplex", base.get_config()).placed(coords)
    spacing = spot_spacing_um(coords)
    away = np.linalg.norm(coords[around] - coords[:, None], axis=2)[there] / spacing
    assert away.max() < 4.1 and (around[:, 12] == np.arange(len(coords))).all()
    inner = there[:, [6, 7, 8, 11, 13, 16, 17, 18]].mean()
    assert inner > (0.3 if kind == "random" else 0.7)


def sets_of(*sizes: int) -> list[Rows]:
    rng = np.random.default_rng(0)
    return [
        Rows(
            rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32),
            (np.arange(n),), np.ones(n, bool),
        )
        for n in sizes
    ]  # fmt: skip


def test_steps_of_spots_are_all_spots_once_and_a_few_again():
    steps = SpotSteps(sets_of(10, 13), ["a", "b"], 8)
    batches = [batch for step in steps.batches(0, 3) for batch in step]
    assert len(batches) == steps.steps == 3
    seen = np.concatenate([batch.x[0, :, 0] for batch in batches])
    pooled = np.concatenate([rows.x[:, 0] for rows in steps.sets])
    assert sorted(seen[:23]) == sorted(pooled) and len(seen) == 24
    again = [batch for step in steps.batches(0, 3, first=2) for batch in step]
    np.testing.assert_array_equal(again[0].x, batches[2].x)
    assert not np.array_equal(next(next(steps.batches(0, 4))).x, batches[0].x)
    assert set(steps.where(0, 3, 0).split()) <= {"slide", "a,", "b", "a"}


def test_steps_of_slides_are_padded_and_other_devices_idle():
    steps = SlideSteps(sets_of(10, 40), ["a", "b"], 2)
    assert steps.steps == 4
    found = [next(batches) for batches in steps.batches(0, 0, devices=2)]
    sizes = sorted(int(batch.there[0].sum()) for batch in found)
    assert sizes == [10, 10, 40, 40]
    assert all(batch.there.shape[0] == 2 and not batch.there[1].any() for batch in found)
    assert sorted({batch.there.shape[1] for batch in found}) == [32, 64]
    assert steps.where(0, 0, 0) in ("slide a", "slide b")


def gigapath(folder, seed: int = 0):
    """A file as GigaPath's slide_encoder.pth is, 2 layers of 32 that see the toy's embeddings."""
    rng, d = np.random.default_rng(seed), 32
    tensors = {"cls_token": rng.normal(size=(1, 1, d))}

    def linear(name, rows, columns):
        tensors[f"{name}.weight"] = rng.normal(size=(columns, rows)) / np.sqrt(rows)
        tensors[f"{name}.bias"] = 0.1 * rng.normal(size=columns)

    def norm(name, width):
        tensors[f"{name}.weight"] = 1 + 0.1 * rng.normal(size=width)
        tensors[f"{name}.bias"] = 0.1 * rng.normal(size=width)

    linear("patch_embed.proj", tiny.WIDTH, d)
    for layer in (f"encoder.layers.{i}" for i in range(2)):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{part}", d, d)
        linear(f"{layer}.ffn.fc1", d, 4 * d)
        linear(f"{layer}.ffn.fc2", 4 * d, d)
        norm(f"{layer}.ffn.ffn_layernorm", 4 * d)
        for part in ("self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm"):
            norm(f"{layer}.{part}", d)
    norm("encoder.layer_norm", d)
    norm("norm", d)
    tensors = {f"model.{name}": a.astype(np.float32) for name, a in tensors.items()}
    return encoder_folders.safetensors(folder / "slide_encoder.safetensors", tensors), tensors


def test_gigapath_starts_from_its_weights(tmp_path):
    path, tensors = gigapath(tmp_path)
    method = table.build("gigapath_slide", tiny_stack.config(longnet__weights=str(path)))
    assert method.sizes == (32, 2, 16)
    rows = Rows(
        np.zeros((8, tiny.WIDTH)), np.zeros((8, 3)), (np.zeros((8, 2), int),), np.ones(8, bool)
    )
    given = method.given()
    trained = method.init(jax.random.key(0), given, jax.eval_shape(lambda: rows))
    own = method.finished(trained, given)["params"]["network"]
    assert set(own) == {*given, "head", "skip"}
    first = own["layer_1"]
    weights = [tensors[f"model.encoder.layers.1.self_attn.{p}_proj.weight"] for p in "qkv"]
    np.testing.assert_array_equal(first["qkv"]["kernel"], np.concatenate(weights).T)
    narrow = tensors["model.encoder.layers.1.ffn.fc2.weight"]
    np.testing.assert_array_equal(first["feed_forward"]["narrow"]["kernel"], narrow.T)
    np.testing.assert_array_equal(own["cls"], tensors["model.cls_token"][0])
    np.testing.assert_array_equal(
        own["norm_layers"]["bias"], tensors["model.encoder.layer_norm.bias"]
    )


def test_gigapath_goes_on_from_its_weights(tmp_path):
    path, _ = gigapath(tmp_path)
    config = tiny_stack.config(train__epochs=30, longnet__weights=str(path), longnet__rate=0.1)
    slides = tiny.slides(registered=True)
    genes = Genes(*(tuple(tiny_stack.genes(slides)) for _ in range(2)))
    method = table.build("gigapath_slide", config)
    method.check(slides, 1)
    state = method.fit([Section(s) for s in slides[1:]], genes, run_of(tmp_path, config, "g"))
    own, start = state.params["params"]["network"], method.given()
    moved = np.abs(own["layer_0"]["out"]["kernel"] - start["layer_0"]["out"]["kernel"])
    assert 0 < moved.max() < 0.1
    true = expression(slides[0], genes.scored, "log1p")
    found = predicted(method, state, slides[0], genes)
    assert metrics.mean_over_genes(metrics.pearson(found, true))[0] > 0.25


def test_weights_that_are_not_gigapaths_are_refused(tmp_path):
    path, tensors = gigapath(tmp_path)
    method = table.build("gigapath_slide", tiny_stack.config(longnet__weights=str(path)))
    (slide,) = tiny.slides(1)
    wide = dataclasses.replace(slide, features=np.zeros((slide.num_spots, 20), np.float32))
    with pytest.raises(InputError, match=r"embeddings of 12 numbers.*found 20"):
        method.check([wide], 1)
    del tensors["model.norm.weight"]
    other = encoder_folders.safetensors(tmp_path / "other.safetensors", tensors)
    method = table.build("gigapath_slide", tiny_stack.config(longnet__weights=str(other)))
    with pytest.raises(InputError, match=r"no norm.weight in it; give the file slide_encoder.pth"):
        method.check([slide], 1)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """A tiny encoder, simulated sections with their images, and the config that trains it."""
    folder = encoder_folders.timm_vit(tmp_path_factory.mktemp("vit") / "small")
    tissue = volume(TissueParams(num_sections=2, spots=30, num_genes=30), seed=0)
    slides = [
        dataclasses.replace(s, features=np.eye(s.num_spots, 5, dtype=np.float32), encoder="toy")
        for s in tissue.slides
    ]
    config = tiny_stack.config(
        train__epochs=4, train__select=False, train__checkpoint_every=4, model__components=4,
        train__learning_rate=1e-3, networks__batch=16, stnet__encoder=str(folder),
        stnet__rate=0.1,
    )  # fmt: skip
    return config, slides


def test_an_encoder_is_trained_from_patches(patches, tmp_path):
    """All of it moves; what a slide's spots look like, not its embeddings, says what is predicted;
    turned and flipped images are predicted alike."""
    config, (slide, other) = patches
    genes = Genes(*(tuple(tiny_stack.genes([slide, other])) for _ in range(2)))
    method = table.build("stnet", config)
    state = method.fit([Section(slide)], genes, run_of(tmp_path, config, "stnet"))
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), method.given(), state.params["encoder"]
    )
    assert np.mean([m > 0 for m in jax.tree.leaves(moved)]) > 0.9
    first = predicted(method, state, other, genes)
    assert first.std(axis=0).min() > 0
    blank = dataclasses.replace(other, features=np.zeros_like(other.features))
    np.testing.assert_array_equal(predicted(method, state, blank, genes), first)

    class Turned:
        um_per_px = other.patches.um_per_px

        def read(self, indices, size_um):
            return np.rot90(other.patches.read(indices, size_um), axes=(1, 2))[:, ::-1]

    turned = dataclasses.replace(other, patches=Turned())
    np.testing.assert_allclose(predicted(method, state, turned, genes), first, atol=1e-3)


def test_patches_that_are_not_there_are_asked_for(patches):
    config, slides = patches
    method = table.build("stnet", config)
    bare = dataclasses.replace(slides[0], patches=None)
    with pytest.raises(InputError, match="trained from patches; give the slide its image"):
        method.check([bare], 1)
    with pytest.raises(InputError, match="must be a network"):
        config = tiny_stack.config(stnet__encoder="stain_texture")
        table.build("stnet", config).check(slides, 1)
