"""SRast with H&E of the children: her2st's C2 ... C6, which have images, one section left out.

python run.py --config=configs/srast_her2st_image.py --config.data.dir=HER2ST --workdir=runs/image
"""

from configs import srast_her2st


def get_config():
    config = srast_her2st.get_config()
    config.data.sections = tuple(f"C{i}" for i in range(2, 7))
    config.srast.image = True
    return config
