"""Simulated patients who differ as real ones do: three to train on, three others to be tested.

    python run.py --config=configs/simulated_patients.py --workdir=runs/simulated_patients

The dials say how far patients differ (0: a near stranger, 1: a far one), each of something else.
With --config.data.folds=section (another workdir) the three to train on are predicted at home, from
their other section.

The dials' sizes are not fitted to any patients. Figures: docs/results.md.
"""

from configs import base, demo


def get_config():
    config = base.get_config()
    regressions = ("ridge", "ridge_smooth", "ridge_context", "ridge_reduced", "kernel_ridge")
    config.methods = (*regressions, "gated", "anchor", "stflow")
    config.data.reader = "simulated"
    config.data.seeds = (0, 1, 2, 3, 4, 5)
    config.data.test_patients = 3
    config.data.tissue.num_sections = 2
    config.data.tissue.spots = 100
    config.data.tissue.section_gap_um = 100.0
    config.data.tissue.program_strength = 0.8
    config.data.tissue.stranger_stain = 1.0
    config.data.tissue.stranger_scanner = 1.0
    config.data.tissue.stranger_depth = 1.0
    config.data.tissue.stranger_mixture = 1.0
    config.data.tissue.stranger_programs = 1.0
    config.data.tissue.stranger_panel = 1.0
    config.encoder.patch_um = 150.0
    demo.small_data(config)
    config.train.epochs = 25
    return config
