"""HoloTea on her2st C2..C6, leave one section out, both regimes.

    python run.py --config=configs/holotea_her2st.py --workdir=runs/holotea \
        --config.data.dir=../shared/her2st

Not yet run.
"""

from configs import her2st_stflow


def get_config():
    config = her2st_stflow.get_config()
    config.method = "holotea"
    config.stack.epochs = 20
    return config
