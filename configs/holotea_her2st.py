"""HoloTea on her2st C2..C6, leave one section out, both regimes.

    python run.py --config=configs/holotea_her2st.py --workdir=runs/holotea \
        --config.data.dir=../shared/her2st

2026-11-21, 2 CPU cores, five folds, seed 0; pearson; of draws gene structure, moran, consistency,
coverage80 (some 13 minutes for each normalisation, side by side, after the base's 15):

                      log1p                             log1p_cp10k
    neighbour_copy    .590                              .489
    centred_sum       .619                              .521
    stflow            .620                              .525
    stflow_draw             .907 .703 .783 .796               .908 .479 .524 .790
    holotea_he        .620                              .525
    holotea_he_draw         .901 .681 .768 .789               .905 .506 .539 .780
    holotea           .630                              .539
    holotea_draw            .909 .797 .857 .768               .904 .640 .676 .773

Ablations stand in docs/results.md. How neighbours are retrieved (config.stack) was chosen by
leaving out training sections, before this table was made.
"""

from configs import base, her2st_stflow


def get_config():
    config = her2st_stflow.get_config()
    config.methods = base.STACK
    config.stack.epochs = 10
    return config
