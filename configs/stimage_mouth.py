"""STFlow on the mouth slides of STImage-1K4M, folds by study.

    python run.py --config=configs/stimage_mouth.py --workdir=runs/stimage_mouth \
        --config.data.dir=STIMAGE

Not yet run: the data set was not at hand. Read and trained on a folder of the same layout (tests).
"""

from configs import stimage


def get_config():
    return stimage.get_config("mouth")
