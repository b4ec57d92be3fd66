"""SRast on small simulated tissue at bin resolution: 2 x 2 bins of 50 um from one of 100 um.

    python run.py --config=configs/srast_demo.py --workdir=W
    python run.py --config=configs/srast_demo.py --workdir=W --mode=predict \\
        --config.predict.input=W/low.h5ad --config.predict.output=W/high.h5ad

2026-11-22: 2 min 15 s of processor time, prediction 24 s. Two patients of some 1,650 bins: pearson
of log1p uniform .709, bilinear .712, gaussian .714, srast .714 (seed 0).
"""

from configs import base, srast_her2st


def get_config():
    config = base.get_config()
    config.methods = base.SPLIT
    config.data.reader = "simulated"
    config.data.tissue.lattice = "bins"
    config.data.tissue.pitch_um = 50.0
    config.data.tissue.mean_count = 3.0
    config.data.tissue.num_sections = 1
    config.data.tissue.spots = 1600
    config.data.tissue.num_genes = 100
    config.data.seeds = (0, 1, 2)
    config.data.unseen = 1
    config.data.num_genes = 30
    config.coarsen.group = "2x2"
    config.srast.pool = 60
    config.srast.trained_on = 80
    config.srast.batch = 1024
    srast_her2st.training(config)
    config.train.epochs = 15
    config.sample.draws = 19
    return config
