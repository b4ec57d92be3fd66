"""Gene programmes and cell types as lists of marker genes: those built in, or a file's.

The built-in lists are for human tumours, of the breast above all, and our decision: markers in
common use, none a paper's signature but `proliferation`, the eleven genes of PAM50's score (Nielsen
et al., Clinical Cancer Research 2010).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from stfm_jax.data.readers import plain
from stfm_jax.errors import InputError

MARKERS = {
    "epithelium": "EPCAM KRT7 KRT8 KRT18 KRT19 CDH1 CLDN3 CLDN4 ELF3 MUC1 TACSTD2 CD24",
    "luminal": "ESR1 PGR AR GATA3 FOXA1 XBP1 AGR2 TFF1 TFF3 SCUBE2",
    "basal": "KRT5 KRT6B KRT14 KRT15 KRT17 TP63 SFRP1",
    "HER2 amplicon": "ERBB2 GRB7 STARD3 PGAP3 MIEN1 TCAP PNMT",
    "proliferation": "BIRC5 CCNB1 CDC20 CEP55 MKI67 NDC80 NUF2 PTTG1 RRM2 TYMS UBE2C",
    "T cells": "CD2 CD3D CD3E CD3G CD8A TRAC TRBC1 TRBC2 IL7R GZMK CCL5",
    "B cells": "MS4A1 CD19 CD79A CD79B BANK1",
    "plasma cells": "IGKC IGLC2 IGLC3 IGHG1 IGHG3 IGHA1 IGHM JCHAIN MZB1 DERL3 TNFRSF17",
    "macrophages": "CD14 CD68 CD163 LYZ AIF1 TYROBP FCER1G C1QA C1QB C1QC CSF1R MS4A7",
    "antigen presentation": "HLA-DRA HLA-DRB1 HLA-DPA1 HLA-DPB1 HLA-DQA1 HLA-DQB1 CD74",
    "interferon": "ISG15 IFI6 IFI27 IFIT1 IFIT3 MX1 OAS1 STAT1 CXCL10",
    "fibroblasts": "COL1A1 COL1A2 COL3A1 DCN LUM FN1 SPARC POSTN FAP PDGFRB THY1",
    "endothelium": "PECAM1 VWF CDH5 CLDN5 PLVAP ENG RAMP2 EGFL7",
    "smooth muscle": "ACTA2 TAGLN MYL9 MYH11 CNN1 DES",
    "adipocytes": "ADIPOQ PLIN1 PLIN4 FABP4 LEP CIDEC LPL",
    "hypoxia": "CA9 VEGFA SLC2A1 ADM NDRG1 ANKRD37 BNIP3 LDHA P4HA1",
}
_FORM = "a GMT file: in each line a name, a description and genes, with tabs between"


def programmes(path: str) -> Mapping[str, tuple[str, ...]]:
    """Genes by the name of their programme: a GMT file's, or, of no path, MARKERS.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is no GMT file.
    """
    if not path:
        return {name: tuple(genes.split()) for name, genes in MARKERS.items()}
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file (--config.data.programmes); give {_FORM}.")
    with plain.reading(file, _FORM), plain.open_bytes(file) as opened:
        lines = opened.read().decode("utf-8-sig").splitlines()
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, 1):
        name, *rest = (cell.strip() for cell in line.split("\t"))
        genes = tuple(dict.fromkeys(filter(None, rest[1:])))
        if line.strip() and not (name and genes and name not in found):
            said = f"{name!r} a second time" if name in found else f"{len(rest) + 1} cells"
            raise InputError(f"{file}: expected {_FORM}; line {number} has {said}.")
        if line.strip():
            found[name] = genes
    if not found:
        raise InputError(f"{file}: expected {_FORM}; it has no line.")
    return found
