"""The table of published encoders, and who is found by what."""

from __future__ import annotations

import pathlib
import re

import pytest

from stfm_jax.encoders import known
from stfm_jax.encoders.loading import BUILT_IN
from stfm_jax.encoders.vit import Architecture

ROWS = {row.name: row for row in known.TABLE}


@pytest.mark.parametrize("name", ROWS)
def test_each_is_found_by_its_name(name):
    row = ROWS[name]
    first = row.words.split("|")[0]
    for folder in (first, f"models--owner--{first.upper()}", first.replace("-", "_")):
        assert known.find(row.shape, folder) is row


@pytest.mark.parametrize("name", [row.name for row in known.TABLE if row.sha256])
def test_each_is_found_by_its_hash_before_any_name(name):
    row = ROWS[name]
    assert re.fullmatch("[0-9a-f]{8}", row.sha256)
    other = known.sharing(row.shape)[0].words.split("|")[0]
    assert known.find(row.shape, other, sha256=row.sha256 + "0" * 56) is row


@pytest.mark.parametrize("name", ["UNI2-h", "GigaPath", "Virchow", "Virchow2", "Hibou-L"])
def test_shapes_of_one_model_alone(name):
    assert known.find(ROWS[name].shape, "weights") is ROWS[name]


@pytest.mark.parametrize(
    ("shape", "library", "name"),
    [
        ("UNI", "timm", "UNI"),
        ("UNI", "transformers", "Phikon-v2"),
        ("H0-mini", "timm", "H0-mini"),
        ("H0-mini", "transformers", "Hibou-B"),
        ("UNI", None, None),
        ("H-optimus-0", "timm", None),  # -0 and -1 are built alike
        ("Phikon", "transformers", None),  # any ViT-B/16
        ("Lunit-S16", "timm", None),
        ("Midnight-12k", "transformers", None),  # DINOv2's giant
        ("ResNet18-Ciga", "timm", None),
    ],
)
def test_shapes_of_several(shape, library, name):
    found = known.find(ROWS[shape].shape, "weights", library)
    assert (found and found.name) == name


def test_words_are_whole():
    assert known.find(ROWS["UNI"].shape, "university", None) is None


@pytest.mark.parametrize(
    ("data_say", "name"),
    [
        ("uni_v1_112um", "UNI"),
        ("UNI2-h", "UNI2-h"),
        ("virchow2", "Virchow2"),
        ("virchow", "Virchow"),
        ("H-optimus-0", "H-optimus-0"),
        ("hoptimus1", "H-optimus-1"),
        ("phikon_v2_112um", "Phikon-v2"),
        ("kaiko_vits8", "Kaiko-S16"),
        ("", None),
        ("unit", None),
        ("toy_112um", None),
    ],
)
def test_data_name_it(data_say, name):
    found = known.named(data_say)
    assert (found and found.name) == name


def test_signature():
    virchow2 = Architecture(14, 1280, 32, 16, 3416, True, True, 4, True, 16)
    assert known.signature(virchow2) == ROWS["Virchow2"].shape
    assert known.find(known.signature(virchow2)) is ROWS["Virchow2"]


def test_fields_of_view():
    assert ROWS["UNI"].field_um == 112
    assert ROWS["GigaPath"].field_um == 128
    assert ROWS["Lunit-S8"].field_um == 124


def line(row: known.Known) -> str:
    """A row as docs/encoders.md has it."""
    name = row.shape if row.shape in BUILT_IN else re.sub(r"[^a-z0-9.]+", "-", row.name.lower())
    images = row.preprocess
    crop = f", central {images.crop}" if images.crop < images.resize else ""
    cells = (
        f"`{name}`",
        row.pool or "mean of its map",
        f"{images.resize} px{crop}, {images.interpolation}",
        f"{row.um_per_px:.3g}",
        row.licence + ", gated" * row.gated,
        row.citation,
    )
    return f"| {' | '.join(cells)} |"


def test_the_page_lists_the_table():
    page = pathlib.Path(__file__).parents[2] / "docs" / "encoders.md"
    text = page.read_text(encoding="utf-8").split("## Models that are known")[1]
    text = text.split("\n## ")[0]
    _, *listed = [each for each in text.splitlines() if each.startswith("| `")]
    assert listed == [line(row) for row in known.TABLE]
