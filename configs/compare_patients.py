"""All methods on patients never seen: her2st's C and A1 at one low resolution, one report.

    python run.py --config=configs/compare_patients.py --workdir=runs/compare_patients \
        --config.data.dir=../shared/her2st_lowres

Otherwise as configs/compare_her2st.py. Figures: docs/results.md.
"""

from configs import base, her2st_patients


def get_config():
    config = her2st_patients.get_config()
    base.side_by_side(config)
    config.data.genes = base.BIOMARKERS
    return config
