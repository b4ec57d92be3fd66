"""STFlow on her2st C2..C6, leave one section out.

    python run.py --config=configs/her2st_stflow.py --workdir=runs/her2st \
        --config.data.dir=../shared/her2st

Not yet run.
"""

from configs import base, demo


def get_config():
    config = base.get_config()
    config.data.reader = "her2st"
    config.data.dir = "../shared/her2st"
    config.data.sections = ("C2", "C3", "C4", "C5", "C6")
    demo.small_data(config)
    return config
