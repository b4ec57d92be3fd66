"""Bad input: what --mode=predict is given."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from bad_input import (
    assert_refused,
    first_spots,
    narrower,
    other_encoder,
    set_feature,
    without_features,
)

from stfm_jax.data import embeddings


def embedded_elsewhere(world):
    """An embedding file whose barcodes are not the slide's."""
    path = world.root / "other.h5"
    embeddings.write(path, np.ones((3, tiny.WIDTH)), np.zeros((3, 2)), np.array(list("abc")), "")
    return {"predict__embeddings": str(path)}


CASES = [
    # name, mode, what is made (and which fields point to it), words of the message
    ("predict before train", "predict", lambda w: w.predict(), ["holds no experiment"]),
    (
        "no input",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__input=""),
        ["--config.predict.input=IN.h5ad"],
    ),
    (
        "no output",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__output=""),
        ["--config.predict.output=OUT.h5ad"],
    ),
    (
        "output over the input",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__output=str(w.root / "in.h5ad")),
        ["--config.predict.output", "in.h5ad"],
    ),
    (
        "output of another kind",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__output=str(w.root / "out.png")),
        ["--config.predict.output", ".h5ad", "out.png"],
    ),
    (
        "output in a file's place",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__output=str(w.root / "in.h5ad" / "out.h5ad")),
        ["in.h5ad", "another path"],
    ),
    (
        "missing input",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__input=str(w.root / "none.h5ad")),
        ["none.h5ad: no such file"],
    ),
    (
        "missing image",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__image=str(w.root / "none.jpg")),
        ["'precomputed'", "not built in"],
    ),
    (
        "missing embeddings",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__embeddings=str(w.root / "none.h5")),
        ["none.h5: no such file"],
    ),
    (
        "embeddings of another slide",
        "predict",
        lambda w: w.retrained(lambda _: None) | embedded_elsewhere(w),
        ["in.h5ad", "none of its", "other.h5", "spelled alike"],
    ),
    (
        "embeddings and image",
        "predict",
        lambda w: w.retrained(
            lambda _: None, predict__embeddings="a.h5", predict__image="slide.jpg"
        ),
        ["--config.predict.image", "--config.predict.embeddings", "give one"],
    ),
    (
        "single draw",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__draws=1),
        ["config.predict.draws must be at least 2"],
    ),
    (
        "another encoder's features",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(other_encoder),
        ["in.h5ad", "'uni_v1'", f"trained on '{tiny.ENCODER}'"],
    ),
    (
        "features of another width",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(narrower),
        ["in.h5ad", "5 wide", "trained on 12"],
    ),
    (
        "NaN feature to predict from",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(set_feature(np.nan)),
        ["in.h5ad", "features of 1 spots hold NaN"],
    ),
    (
        "no features to predict from",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(without_features),
        ["in.h5ad", "no features", tiny.ENCODER, "--config.predict.image"],
    ),
    (
        "too few spots to predict",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(first_spots(4)),
        ["in.h5ad", "has 4 spots", "more than 4"],
    ),
]


@pytest.mark.parametrize(
    ("mode", "make", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(trained, tmp_path, capfd, mode, make, words):
    assert_refused(mode, make, words, trained, tmp_path, capfd)
