"""Nothing gets in: links out of a file are not followed, what memory cannot hold is not read."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import tiny
import zarr

from stfm_jax.data import embeddings
from stfm_jax.data.readers import h5ad, her2st, plain, tenx, zarr_store
from stfm_jax.errors import InputError
from stfm_jax.runtime import memory
from stfm_jax.runtime.files import load_arrays

HUGE = 1 << 45  # numbers: 256 TiB


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "slide.h5ad"
    h5ad.write(tiny.slides(1)[0], path)
    return path


@pytest.fixture
def given(slide_file, tmp_path):
    shutil.copy(slide_file, tmp_path / "in.h5ad")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.arange(4.0)
    return tmp_path / "in.h5ad"


def external_link(file, name):
    del file[name]
    file[name] = h5py.ExternalLink("secret.h5", "/x")


def external_group(file, _):
    file.create_group("uns/deep/er")["x"] = h5py.ExternalLink("secret.h5", "/")


def external_values(file, _):
    where = [("secret.h5", 0, 32)]
    file.create_dataset("uns/raw", (4,), np.float64, external=where)


def virtual(file, _):
    layout = h5py.VirtualLayout((4,), np.float64)
    layout[:] = h5py.VirtualSource("secret.h5", "x", (4,))
    file.create_virtual_dataset("obsm/virtual", layout)


def never_written(file, _):
    file.create_dataset("obs/huge", (HUGE,), np.float64, chunks=(1 << 20,))


def never_written_matrix(file, name):
    del file[name]
    made = file.create_dataset(name, (1 << 25, 1 << 20), np.float64, chunks=(1024, 1024))
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


LINKED = [
    (external_link, "obsm/spatial"),
    (external_link, "X"),
    (external_link, "obs"),
    (external_group, ""),
    (external_values, ""),
    (virtual, ""),
]
READ = {"read": h5ad.read, "to predict": h5ad.read_to_predict, "stack": h5ad.read_stack_to_predict}


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize("change, name", LINKED)
def test_what_lies_in_another_file_is_not_read(given, change, name, how):
    with h5py.File(given, "r+") as file:
        change(file, name)
    with pytest.raises(InputError, match=r"in\.h5ad: .*lies in another file \(.*secret\.h5\)"):
        READ[how](given)


def test_links_within_a_file_are_followed(given):
    """Also such that go round in a circle."""
    expected = h5ad.read(given)
    with h5py.File(given, "r+") as file:
        file["elsewhere"] = file["obsm/spatial"]
        del file["obsm/spatial"]
        file["obsm/spatial"] = h5py.SoftLink("/elsewhere")
        file["round"] = h5py.SoftLink("/")
        file["again"] = file["obsm"]
    np.testing.assert_array_equal(h5ad.read_to_predict(given).coords_um, expected.coords_um)


@pytest.mark.parametrize("change, name", [(never_written, ""), (never_written_matrix, "X")])
@pytest.mark.parametrize("how", READ)
def test_an_array_that_was_never_written_is_refused_with_its_size(given, change, name, how):
    with h5py.File(given, "r+") as file:
        change(file, name)
    with pytest.raises(InputError, match=r"in\.h5ad: unpacks to 262,144\.0 GiB .* GiB of memory"):
        READ[how](given)


def test_embeddings_and_matrices_of_10x_likewise(tmp_path, given):
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["features"] = h5py.ExternalLink("secret.h5", "/x")
        file["coords"] = np.zeros((4, 2))
    with pytest.raises(InputError, match="lies in another file"):
        embeddings.open_stored(tmp_path / "links.h5")
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file["features"] = np.zeros((4, 3), np.float32)
        file.create_dataset("coords", (HUGE, 2), np.float64, chunks=(1024, 2))
    with pytest.raises(InputError, match=r"unpacks to 524,288.0 GiB"):
        embeddings.open_stored(tmp_path / "huge.h5")
    with h5py.File(tmp_path / "matrix.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("barcodes", "data", "indices", "indptr", "shape"):
            group[name] = np.zeros(1, np.int64)
        del group["data"]
        group["data"] = h5py.ExternalLink("secret.h5", "/x")
    assert tenx.is_matrix(tmp_path / "matrix.h5")
    with pytest.raises(InputError, match="lies in another file"):
        tenx.open_matrix(tmp_path / "matrix.h5")


@pytest.fixture
def little(monkeypatch):
    """100 KB of memory are free."""
    for module in (memory, plain):
        monkeypatch.setattr(module, "available_memory", lambda: 100_000)


def test_a_packed_matrix_is_refused_before_it_is_read(given, monkeypatch):
    """One that is written out: 8 MB of zeros in a few KB."""
    with h5py.File(given, "r+") as file:
        n, attributes = len(file["obsm/features"]), dict(file["obsm/features"].attrs)
        del file["obsm/features"]
        zeros = file.create_dataset("obsm/features", (n, 20_000), "f8", compression="gzip")
        zeros[:] = 0
        zeros.attrs.update(attributes)
    monkeypatch.setattr(memory, "available_memory", lambda: 4_000_000)
    with pytest.raises(InputError, match=r"unpacks to 0.0 GiB, but 0.0 GiB of memory are free"):
        h5ad.read(given)
    h5ad.read_to_predict(given)  # which leaves it where it is


def test_stores_tables_and_arrays_are_refused_too(tmp_path, little):
    adata = anndata.AnnData(obsm={"features": np.zeros((100, 300), np.float32)})
    adata.write_zarr(tmp_path / "a.zarr")
    text = "a,b\n" + "1,2\n" * 100_000
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps({"a": text}).encode()))
    pa.parquet.write_table(pa.table({"a": np.zeros(100_000)}), tmp_path / "a.parquet",
                           use_dictionary=False)  # fmt: skip
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(100_000))
    reads = {
        "a.zarr": zarr_store.load,
        "a.csv.gz": lambda path: plain.read_table(path, ","),
        "a.json.gz": plain.read_json,
        "a.npz": load_arrays,
    }
    for name, read in reads.items():
        with pytest.raises(InputError, match=rf"{name}.*unpacks to .*memory are free") as error:
            read(tmp_path / name)
        assert str(error.value).count(name) == 1
    with pytest.raises(InputError, match=r"unpacks to"):
        with plain.opened_parquet(tmp_path / "a.parquet", "a table"):
            pass


def test_a_section_of_text_that_does_not_end_is_refused(tmp_path, little):
    for folder in ("ST-cnts", "ST-spotfiles"):
        (tmp_path / folder).mkdir()
    row = "\t".join(["G"] * 100_000)
    (tmp_path / "ST-cnts" / "A1.tsv.gz").write_bytes(gzip.compress(row.encode()))
    (tmp_path / "ST-spotfiles" / "A1_selection.tsv").write_text(
        "\t".join(["x", "y", "new_x", "new_y", "pixel_x", "pixel_y"]) + "\n" + "1\t" * 5 + "1\n"
    )
    with pytest.raises(InputError, match=r"unpacks to more than 0.0 GiB"):
        her2st.read(tmp_path, "A1")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../../b", "..", "x" * 300])
def test_a_table_of_hest_leads_nowhere_else(tmp_path, name):
    from hest_layout import write_task

    from stfm_jax.data.readers import hest

    sections = tiny.slides(2)
    task = write_task(tmp_path, "IDC", sections, list(sections[0].genes[:4]), patches=False)
    path = task / "splits" / "train_0.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[0, "sample_id"] = name
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match=r"train_0.csv: expected a name"):
        hest.published_folds(tmp_path, "IDC")


@pytest.mark.parametrize("where", ["X", "features"])
def test_an_archive_is_a_store_too(tmp_path, little, where):
    anndata.AnnData(obs=pd.DataFrame(index=["a", "b"])).write_zarr(tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+")
    shape = (1 << 30, 1 << 10)
    name = {"X": "X", "features": "obsm/features"}[where]
    if name in group:
        del group[name]
    huge = group.create_array(name, shape=shape, dtype="f8", chunks=(1024, 1024))
    huge.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    zarr.consolidate_metadata(str(tmp_path / "a.zarr"))
    with zipfile.ZipFile(tmp_path / "b.zarr.zip", "w") as file:
        for path in (tmp_path / "a.zarr").rglob("*"):
            if path.is_file():
                file.write(path, path.relative_to(tmp_path / "a.zarr"))
    for name in ("a.zarr", "b.zarr.zip"):
        with pytest.raises(InputError, match=r"unpacks to 8,192.0 GiB"):
            zarr_store.load(tmp_path / name)
