"""The Python face: a trained folder and an AnnData in, a new AnnData out.

    import stfm_jax as stfm

    model = stfm.load("runs/demo")
    predicted = model.predict(adata)

    stfm.export("runs/demo", "demo_model")  # a folder to pass on, which `load` takes too

It takes the command's own way (`predict.file`): what is given is written to a temporary file as far
as prediction looks at it, and what the command would write is read back. So both give the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import pandas as pd
from ml_collections import ConfigDict

from stfm_jax import builtin, experiment, layout, seeds, store, trained
from stfm_jax import workdir as workdirs
from stfm_jax.data import feature_blocks
from stfm_jax.data.panel import GENE_COLUMNS
from stfm_jax.data.readers import h5ad_group
from stfm_jax.errors import InputError
from stfm_jax.models.method import EXPRESSION, STACK
from stfm_jax.predict.file import predict_file
from stfm_jax.problems.table import problem_of
from stfm_jax.report.card import card
from stfm_jax.runtime.files import atomic_folder, expanded, is_file_name, read_json

Data = anndata.AnnData | str | os.PathLike


class Model:
    """A method fitted in a workdir; made by `load` and `fit`."""

    def __init__(self, workdir: Path, config: ConfigDict, fitted: store.Model, folder: Path):
        self.workdir, self.config = workdir, config
        self._fitted, self._folder = fitted, folder

    @property
    def method(self) -> str:
        """Name of the method."""
        return self._fitted.method.name

    @property
    def genes(self) -> list[str]:
        """Genes that are predicted; of a method that splits counts, those it was trained on."""
        return [str(gene) for gene in self._fitted.genes.scored]

    def __repr__(self) -> str:
        return f"<{self.method} of {self.workdir}, {len(self.genes)} genes>"

    def predict(
        self,
        data: Data,
        image: str | os.PathLike | None = None,
        um_per_px: float | None = None,
        draws: int = 8,
        *,
        spatial_unit: str | None = None,
        features_key: str = "features",
        embeddings: str | os.PathLike | None = None,
        patch_px: float | None = None,
        in_tissue: bool = True,
        bin_um: float = 8.0,
        cells_um: float = 0.0,
        weights: str | os.PathLike | None = None,
        library: float | None = None,
        children: Data | None = None,
        sections: Sequence[str] = (),
        spacing_um: float | None = None,
        lattice: str = "hex",
        tissue_threshold: float | None = None,
        regions: str | os.PathLike | None = None,
    ) -> anndata.AnnData:
        """Predicts a slide, the sections of a stack that were not measured, or a finer resolution.

        Args:
          data: an AnnData, or the path of one or of another input (docs/data_and_files.md): a slide
            with `obsm['spatial']` and an embedding in
            `obsm[features_key]`, or an `image`. For a method for stacks all sections of one stack,
            in one AnnData (`obs['section']`) or a folder of files. For a method that splits counts
            the low resolution, with counts. It is left as it is. Or the path of the H&E image of a
            slide (.svs, .ndpi, .tiff, ...): spots are laid over its tissue.
          image: path of the slide's H&E image, where there is no embedding.
          um_per_px: micrometres per pixel of coordinates in pixels.
          draws: of a method that draws.
          spatial_unit: `um` or `pixel`, over `uns['spatial_unit']`.
          features_key: key of the embedding in `obsm`.
          embeddings: path of a file of embeddings instead, aligned by barcode or place; of several
            encoders paths with commas between.
          patch_px: side of their patches in pixels of level 0, where the file does not say.
          in_tissue: whether spots that `obs['in_tissue']` puts outside the tissue are dropped.
          bin_um: of a folder of Visium HD, the bins.
          cells_um: of a folder of Xenium, squares that cells are added up in; 0: cells.
          weights: folder of the encoder that is to embed the image, or NAME=FOLDER of several;
            None: as in training.
          library: counts of a whole spot that log1p is predicted for; None: the median of training.
          children: of a method that splits counts, the finer spots, which name their parents in
            `obs['parent']`.
          sections: of a stack, those to generate whatever counts they hold.
          spacing_um: of the spots laid over an image; None: as in training.
          lattice: of these, `hex` or `square`.
          tissue_threshold: optical density above which an image is tissue; None: Otsu's.
          regions: path of a GeoJSON as QuPath exports them; only spots in these are predicted.

        Returns:
          A new AnnData: the mean in `X`, `layers` over draws, places in `obsm`, provenance in
          `uns`; what the command line writes (docs/data_and_files.md).

        Raises:
          InputError: an argument, or what a file holds; says what was expected and what to do.

        >>> predicted = stfm.load("runs/demo").predict("runs/demo/slide.h5ad", draws=4)
        >>> predicted.layers["std"].shape == predicted.shape
        True
        """
        with _as_arguments(), tempfile.TemporaryDirectory(prefix="stfm-") as folder:
            config = self.config.copy_and_resolve_references()
            output = Path(folder) / "predicted.h5ad"
            given = {
                "input": self._path(data, Path(folder) / "data.h5ad", features_key),
                "output": str(output),
                "image": _path_or_empty(image),
                "um_per_px": um_per_px,
                "draws": draws,
                "spatial_unit": spatial_unit or "",
                "features_key": features_key,
                "embeddings": _path_or_empty(embeddings),
                "library": library,
                "patch_px": patch_px,
                "in_tissue": in_tissue,
                "bin_um": bin_um,
                "cells_um": cells_um,
                "sections": tuple(sections),
                "spacing_um": spacing_um,
                "lattice": lattice,
                "tissue_threshold": tissue_threshold,
                "regions": _path_or_empty(regions),
                "maps": False,
                "html": False,
                "report": False,
            }
            if children is not None:
                path = Path(folder) / "children.h5ad"
                given["children"] = self._path(children, path, features_key)
            with config.unlocked():
                for name, value in given.items():
                    config.predict[name] = value
                if weights is not None:
                    config.encoder.weights = _path_or_empty(weights)
            predict_file(config, self._fitted, self._folder)
            return anndata.read_h5ad(output)

    def _path(self, data: Data, path: Path, features_key: str) -> str:
        """The path of what was given; of an AnnData that of a file with what is looked at."""
        if isinstance(data, str | os.PathLike):
            return os.path.expanduser(os.fspath(data))
        if not isinstance(data, anndata.AnnData):
            raise InputError(
                f"expected an AnnData, or the path of a file or folder, found "
                f"{type(data).__name__}."
            )
        method = self._fitted.method
        counted = method.problem != EXPRESSION or STACK in method.needs
        _relevant(data, features_key, counted).write_h5ad(path)
        return str(path)


def load(
    workdir: str | os.PathLike,
    method: str | None = None,
    fold: int | None = None,
    seed: int | None = None,
) -> Model:
    """The model that a workdir holds; needs nothing but the folder.

    Args:
      workdir: of a finished run of the command or of `fit`.
      method: one of its methods; None: the one its config names for predicting, or the last.
      fold: the model of a fold, which never saw its test slides; None: of all slides.
      seed: that it was trained with; None: the config's, of several the first.

    Raises:
      InputError: there is no such folder or method, or it is damaged.

    >>> stfm.load("runs/demo").method
    'stflow'
    >>> stfm.load("runs/demo", "kernel_ridge").method
    'kernel_ridge'
    """
    with _as_arguments():
        return _loaded(workdir, method, fold, seed)


def _loaded(
    workdir: str | os.PathLike, method: str | None, fold: int | None, seed: int | None
) -> Model:
    """See `load`."""
    path = Path(os.path.expanduser(os.fspath(workdir)))
    config = workdirs.read_config(path)
    with config.unlocked():
        config.fold = fold
        if seed is not None:
            config.seed, config.seeds = seed, ()
        config.predict.method = method or config.predict.method
    return Model(path, config, *trained.load_model(config, path))


def export(
    workdir: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    method: str | None = None,
    seed: int | None = None,
) -> Path:
    """Writes one model of a workdir into a folder to pass on, from which `load` predicts the same.

        F/README.md                        the card (`report.card`)
        F/config.json                      the workdir's, without places on its machine
        F/final/<method>/seed_<s>/model/   the model, without what prediction does not need

    Args:
      workdir: of a finished run of the command or of `fit`. It is left as it is.
      folder: to be made; nothing may be there but an empty folder.
      method: see `load`.
      seed: that it was trained with; None: the config's, of several the first.

    Returns:
      The folder.

    Raises:
      InputError: there is no such workdir, method, model or report, or something in `folder`.

    >>> folder = stfm.export("runs/demo", "runs/demo_model")
    >>> stfm.load(folder).method
    'stflow'
    """
    with _as_arguments():
        model = _loaded(workdir, method, fold=None, seed=seed)
        chosen, config = model._fitted.method, _passed_on(model.config, model.method)
        state = chosen.needed(model._fitted.state)
        fitted = dataclasses.replace(model._fitted, state=state, only_for=chosen.name)
        metrics = read_json(model.workdir / "metrics.json")
        told = card(fitted, config, metrics, problem_of(config, [chosen]))
        folder = Path(os.path.expanduser(os.fspath(folder)))
        with atomic_folder(folder) as temporary:
            place = layout.fold_folder(temporary, None)
            store.save(layout.model_folder(place, chosen.owner, config.seed), fitted)
            workdirs.write_config(config, temporary)
            (temporary / "README.md").write_text(told, encoding="utf-8")
        return folder


def _passed_on(config: ConfigDict, method: str) -> ConfigDict:
    """The config of a folder with one method, on whatever machine: it names no place, no file."""
    made = config.copy_and_resolve_references()
    with made.unlocked():
        made.methods, made.seeds = (method,), ()
        made.predict = builtin.get_config("base").predict
        made.devices = min(made.devices, 1)
        made.update_from_flattened_dict(dict.fromkeys(workdirs.WHERE_DATA_LIE, ""))
    return made


def fit(
    config: ConfigDict | str,
    adatas: Mapping[str, anndata.AnnData] | str | os.PathLike,
    workdir: str | os.PathLike,
    method: str | None = None,
) -> Model:
    """Trains and scores an experiment on AnnData objects, and returns the model that predicts.

    Args:
      config: a config, or the name of a built-in one; its data section is set to read what is
        given. Where slides hold embeddings, `encoder.name` should be "precomputed".
      adatas: slides by name, with counts in `X` or `layers['counts']`, `obsm['spatial']` and an
        embedding; or a folder of such files. They are left as they are, and copied into the
        workdir, which can be trained on again.
      workdir: for everything that is written, the report too; goes on where it was stopped.
      method: see `load`.

    Raises:
      InputError: the config, an argument, or what a slide holds.

    >>> config = stfm.get_config("demo")
    >>> config.encoder.name, config.methods = "precomputed", ("mean", "ridge")
    >>> config.data.num_genes = 20
    >>> stfm.fit(config, {"first": first, "second": second, "third": third}, "runs/mine").method
    'ridge'
    """
    with _as_arguments():
        made = builtin.get_config(config) if isinstance(config, str) else config
        made = seeds.with_first(made)
        path = Path(os.path.expanduser(os.fspath(workdir)))
        with made.unlocked():
            made.data.reader = "anndata"
            made.data.dir = str(_folder_of(adatas, path, made.data).absolute())
            made.data.unseen = 0
        workdirs.check(made, path, new=True)
        opened = experiment.open_experiment(made, path)
        with workdirs.claimed(opened):
            experiment.train(experiment.place_slides(experiment.embed_slides(opened)))
        return _loaded(path, method, None, made.seed)


def _folder_of(adatas: Any, workdir: Path, data: ConfigDict) -> Path:
    if isinstance(adatas, str | os.PathLike):
        return Path(os.path.expanduser(os.fspath(adatas)))
    if not isinstance(adatas, Mapping) or not all(
        isinstance(adata, anndata.AnnData) for adata in adatas.values()
    ):
        raise InputError("expected adatas to be AnnData objects by name, or a folder of files.")
    folder = workdir / "slides"
    for name, adata in adatas.items():
        if not is_file_name(str(name)):
            raise InputError(f"the name of a slide becomes that of a file, found {name!r}.")
        path = folder / f"{name}.h5ad"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            kept = _relevant(adata, data.features_key, counted=True, also=data.labels_key)
            kept.write_h5ad(path)
    return folder


def _relevant(
    adata: anndata.AnnData, features_key: str, counted: bool, also: str = ""
) -> anndata.AnnData:
    """A new AnnData of what is looked at; the others' oddities are not ours to write."""
    columns = [name for name in adata.obs if h5ad_group.is_wanted(name) or name == also]
    kept = {
        "obs": adata.obs[columns].copy(),
        "obsm": {
            k: adata.obsm[k]
            for k in adata.obsm
            if k in h5ad_group.PLACES or _is_features(k, features_key)
        },
        "uns": {name: adata.uns[name] for name in h5ad_group.UNS if name in adata.uns},
    }
    if (libraries := h5ad_group.scalefactors(adata.uns.get("spatial"))) is not None:
        kept["uns"]["spatial"] = libraries
    if not counted:
        return anndata.AnnData(**kept)
    layers = {"counts": adata.layers["counts"]} if "counts" in adata.layers else {}
    raw = None if adata.raw is None else {"X": adata.raw.X, "var": _names(adata.raw.var)}
    return anndata.AnnData(adata.X, var=_names(adata.var), layers=layers, raw=raw, **kept)


def _names(var: pd.DataFrame) -> pd.DataFrame:
    """A table of genes with what says their names."""
    return var[[name for name in GENE_COLUMNS if name in var]].copy()


def _is_features(key: str, features_key: str) -> bool:
    """Also of several encoders, `features_<name>`."""
    return key == features_key or str(key).startswith(f"{feature_blocks.KEY}_")


def _path_or_empty(path: str | os.PathLike | None) -> str:
    return "" if path is None else expanded(os.fspath(path))


@contextlib.contextmanager
def _as_arguments() -> Iterator[None]:
    """Turns messages of the command into those of a function: arguments are named, not flags."""
    try:
        yield
    except (InputError, FileNotFoundError) as error:
        said = re.sub(r"(--)?config\.predict\.(\w+)(=\w+\.h5ad)?", r"\2", str(error))
        said = re.sub(r"--(config\.)?", "", said)
        said = re.sub(r" \(\S*stfm-\w+/\w+\.h5ad\)", "", said)
        raise InputError(said) from error
