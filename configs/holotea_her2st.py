"""HoloTea on her2st C2..C6, leave one section out, both regimes.

    python run.py --config=configs/holotea_her2st.py --workdir=runs/holotea \
        --config.data.dir=../shared/her2st

2026-11-21, 2 CPU cores, five folds, seed 0, log1p; pearson; of draws gene structure, moran,
consistency, coverage80 (17 minutes after the base, which takes 15):

    neighbour_copy    .590
    centred_sum       .619
    stflow            .620    stflow_draw      .907 .703 .783 .796
    holotea_he        .620    holotea_he_draw  .903 .704 .786 .790
    holotea           .629    holotea_draw     .911 .792 .846 .774

How neighbours are retrieved (config.stack) was chosen by leaving out training sections, over a grid
of 72 settings; sections=2 and temperature=0.3 matter, the rest hardly.
"""

from configs import her2st_stflow


def get_config():
    config = her2st_stflow.get_config()
    config.method = "holotea"
    config.stack.epochs = 10
    return config
