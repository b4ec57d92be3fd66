"""BLEEP's towers and loss against an independent form in torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stfm_jax.nn.bleep import Towers, contrastive_loss

N, F, G, WIDTH = 12, 7, 5, 16


@pytest.fixture
def projected():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(N, d)).astype(np.float32) for d in (F, G))
    towers = Towers(WIDTH, 0.1)
    params = towers.init(jax.random.key(0), x, y, False)
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(
        tree, [jnp.asarray(rng.normal(size=a.shape), jnp.float32) for a in leaves]
    )
    return towers, params, x, y


@pytest.mark.parity
def test_towers_and_loss_are_those_of_torch(projected):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    towers, params, x, y = projected

    def tower(name, values):
        p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params["params"][name])
        first = torch.tensor(values) @ p["project"]["kernel"] + p["project"]["bias"]
        mixed = functional.gelu(first) @ p["mix"]["kernel"] + p["mix"]["bias"]
        norm = p["norm"]
        return functional.layer_norm(first + mixed, (WIDTH,), norm["scale"], norm["bias"])

    image, expression = tower("image", x), tower("expression", y)
    z_i, z_e = towers.apply(params, x, y, False)
    np.testing.assert_allclose(z_i, image, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(z_e, expression, rtol=1e-5, atol=1e-5)

    logits = expression @ image.T / 2.0
    soft = torch.softmax((image @ image.T + expression @ expression.T) / 4.0, dim=-1)
    rows = (-soft * torch.log_softmax(logits, -1)).sum(1)
    columns = (-soft.T * torch.log_softmax(logits.T, -1)).sum(1)
    found = contrastive_loss(z_i, z_e, 2.0)
    np.testing.assert_allclose(found, (rows + columns) / 2, rtol=1e-5, atol=1e-5)


def test_the_loss_is_least_where_pairs_are_alike(projected):
    z = np.eye(N, WIDTH, dtype=np.float32) * 6.0
    alike = contrastive_loss(z, z, 1.0).mean()
    assert alike < 1e-3 < contrastive_loss(z, np.roll(z, 1, axis=0), 1.0).mean()


def test_dropout_is_of_training_alone(projected):
    towers, params, x, y = projected

    def image(key, train):
        return towers.apply(params, x, y, train, rngs={"dropout": jax.random.key(key)})[0]

    np.testing.assert_array_equal(image(0, False), image(1, False))
    assert np.abs(image(0, True) - image(1, True)).max() > 0.1
