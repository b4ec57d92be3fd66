"""SRast with images on simulated tissue: 2 x 2 spots of 200 um from one of 400 um.

    python run.py --config=configs/srast_simulated_image.py --workdir=W

2026-11-22, one CPU core, patches embedded before (--mode=embed): 8 min.
Children are so far apart that tissue differs between them, which in srast_demo.py it hardly does:
`benchmarks/split_limits.py` says how much a split could gain.
"""

from configs import srast_demo


def get_config():
    config = srast_demo.get_config()
    config.data.tissue.lattice = "square"
    config.data.tissue.pitch_um = 200.0
    config.data.tissue.mean_count = 10.0
    config.data.tissue.spots = 1000
    config.data.seeds = (0, 1, 2, 3)
    config.data.unseen = 0
    config.encoder.patch_um = 200.0
    config.srast.image = True
    return config
