"""All methods on her2st C2..C6, leave one section out, in both normalisations: one report.

    python run.py --config=configs/compare_her2st.py --workdir=runs/compare \
        --config.data.dir=../shared/her2st [--config.seeds=0,1,2]

Writes table.md, table.csv, metrics.json and report.html. Every part is an experiment of its own,
RUNS/compare/log1p and RUNS/compare/log1p_cp10k; the same command goes on where it was stopped, and
trains only what is new. Figures: docs/results.md.
"""

from configs import base, her2st_stflow


def get_config():
    config = her2st_stflow.get_config()
    base.side_by_side(config)
    config.methods += ("holotea_he", "holotea")
    config.data.genes = base.BIOMARKERS
    return config
