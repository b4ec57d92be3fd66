"""SRast with images on simulated tissue: 2 x 2 spots of 200 um from one of 400 um.

    python run.py --config=configs/srast_simulated_image.py --workdir=W

Children are so far apart that tissue differs between them (`benchmarks/split_limits.py` says how
much a split could gain); in srast_demo.py it hardly does.
"""

from configs import base, srast_her2st


def get_config():
    config = base.get_config()
    config.method = "srast"
    config.data.reader = "simulated"
    config.data.tissue.num_sections = 1
    config.data.tissue.spots = 1000
    config.data.tissue.num_genes = 100
    config.data.seeds = (0, 1, 2, 3)
    config.data.num_genes = 30
    config.encoder.patch_um = 200.0
    config.srast.image = True
    config.srast.pool = 60
    config.srast.trained_on = 80
    config.srast.batch = 1024
    srast_her2st.training(config)
    config.train.epochs = 15
    config.sample.draws = 19
    return config
