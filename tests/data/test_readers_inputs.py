"""How inputs and folders are read where nothing is said: as the config does."""

import dataclasses

import pytest

from configs import base
from stfm_jax.data.readers import folders, inputs


@pytest.mark.parametrize(
    ("options", "section"), [(inputs.Options(), "predict"), (folders.Options(), "data")]
)
def test_what_is_not_said_is_as_the_config_has_it(options, section):
    config = base.get_config()[section].to_dict()
    said = dataclasses.asdict(options)
    both = set(said) & set(config)
    assert {"um_per_px", "bin_um", "cells_um"} <= both
    assert {name: said[name] or None for name in both} == {n: config[n] or None for n in both}
