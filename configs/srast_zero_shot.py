"""SRast trained on simulated tissue alone and tested on her2st: no tumour, gene or stain was seen.

python run.py --config=configs/srast_zero_shot.py --config.data.dir=HER2ST --workdir=runs/zero
"""

from configs import srast_her2st


def get_config():
    config = srast_her2st.get_config()
    config.data.tissue.num_sections = 2
    config.data.tissue.spots = 600
    config.data.tissue.num_genes = 300
    config.srast.simulated_seeds = (0, 1, 2, 3)
    return config
