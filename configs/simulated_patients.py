"""Simulated patients who differ as real ones do: three to train on, three others to be tested.

    python run.py --config=configs/simulated_patients.py --workdir=runs/simulated_patients

The dials say how far patients differ (0: a near stranger, 1: a far one), each of something else.
With --config.data.folds=section (another workdir) the three to train on are predicted at home, from
their other section.

2026-11-27, 2 CPU cores shared with others: embedding 5 min, regressions 1 min. Regressions alone,
means over three cohorts (--config.data.seeds=0,1,2,3,4,5; 10..15; 20..25), pearson_slide at home
(folds=section) > abroad (published), all dials but stranger_genes at 0 and at 1; hyperparameters by
leaving slides out, not patients, as they are chosen since:

                        log1p                         log1p_cp10k
                     0             1               0             1
    ridge            .288 > .275   .338 > .253     .230 > .216   .269 > .192
    ridge_smooth     .256 > .245   .319 > .229     .216 > .201   .267 > .194
    ridge_context    .301 > .276   .336 > .180     .249 > .217   .272 > .124
    kernel_ridge     .309 > .285   .331 > .178     .253 > .226   .263 > .127

Home rises with the dials as the image shows more programs. The dials' sizes are not fitted to any
patients.
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
