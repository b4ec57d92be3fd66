"""Defaults of every experiment. A config file takes these and says what differs, and why.

Every field can be overridden on the command line, as in `--config.train.epochs=20`.
"""

from ml_collections import ConfigDict, config_dict

REGRESSIONS = ("mean", "ridge", "ridge_smooth", "ridge_context", "kernel_ridge")
EXPRESSION = (*REGRESSIONS, "anchor", "stflow")
COMPARED = (  # on slides by themselves
    *("mean", "probe", "ridge", "ridge_smooth", "ridge_context", "ridge_reduced", "kernel_ridge"),
    *("random_forest", "extra_trees", "boosted_trees", "stnet", "bleep", "histogene", "triplex"),
    *("gigapath_slide", "stflow_published", "gated", "anchor", "stflow"),
)
SLOW = ("stflow_published", "holotea_he", "holotea")  # in compare_*: one seed
STACK = (*REGRESSIONS, "neighbour_copy", "centred_sum", "anchor", "stflow", "holotea_he", "holotea")
BIOMARKERS = ("GATA3", "ERBB2", "UBE2C", "VWF")  # of breast tumours, as STFlow's paper has them
SPLIT = ("uniform", "bilinear", "bicubic", "gaussian", "srast")


def side_by_side(config) -> None:
    """What the configs compare_* have in common."""
    config.methods = COMPARED
    config.compare.normalizations = ("log1p", "log1p_cp10k")
    config.compare.controls = True
    config.compare.once = SLOW
    config.compare.final = False


def tissue() -> ConfigDict:
    """Fields of stfm_jax.data.simulate.TissueParams, which says what they are."""
    return ConfigDict(
        {
            "num_sections": 5,
            "spots": 250,
            "num_genes": 200,
            "lattice": "square",  # hex | bins | random
            "pitch_um": config_dict.placeholder(float),  # the lattice's own
            "mean_count": config_dict.placeholder(float),  # the lattice's own
            "section_gap_um": 16.0,
            "z_stretch": 2.0,
            "domain_length_um": 650.0,
            "local_length_um": 150.0,
            "program_length_um": 450.0,
            "num_programs": 4,
            "program_strength": 0.4,
            "program_nugget": 0.3,
            "depth_smooth": 0.25,
            "depth_noise": 0.22,
            "patient_depth": 0.25,
            "rotation_deg": 0.0,
            "shift_um": 0.0,
            "flip": 0.0,
            "jitter_um": 0.0,
            "lost": 0.0,
            "um_per_px": 1.0,
            "signature_seed": 0,
            "stranger_stain": 0.0,
            "stranger_scanner": 0.0,
            "stranger_depth": 0.0,
            "stranger_mixture": 0.0,
            "stranger_programs": 0.0,
            "stranger_genes": 0.0,
            "stranger_panel": 0.0,
        }
    )


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.methods = EXPRESSION  # rows of the table; the last one predicts, unless predict.method
    config.seed = 0  # of every draw, split and fit
    config.seeds = ()  # every fold once for each of these, in place of seed; the first predicts
    config.fold = config_dict.placeholder(int)  # one fold only; all, when absent
    config.devices = 0  # that share every batch; 0: all there are, of all processes

    data = config.data = ConfigDict()
    # hest | her2st | anndata | visium | visium_hd | xenium | hest1k | stimage |
    # transcripts | simulated | tfds
    data.reader = "anndata"
    data.dir = ""
    data.normalization = "log1p"  # log1p of raw counts, or log1p_cp10k
    data.num_genes = 50  # most variable on the training slides, where no panel is given
    data.genes = ()  # added to those in every fold, and scored apart
    data.programmes = ""  # GMT file of gene programmes that are scored; none: markers built in
    data.missing_genes = "error"  # or drop: go on with genes that every slide has
    data.standardize = "slide"  # image features, by each slide's own images, or by "training"
    data.folds = "auto"  # published, else patient, else section; or one of these three
    data.task = ""  # hest: IDC, PRAD, ...; hest1k: OncoTree code; stimage: breast, ...
    data.sections = ()  # her2st: C2, C3, ...; hest1k: ids; all, when empty
    data.features_key = "features"  # anndata: key in obsm
    data.labels_key = ""  # anndata: column of obs with a pathologist's labels; her2st has its own
    data.spatial_unit = ""  # anndata: um or pixel, over uns['spatial_unit']
    data.um_per_px = config_dict.placeholder(float)  # of every slide, over what its files say
    data.in_tissue = True  # anndata: spots that obs['in_tissue'] puts outside are dropped
    data.strict = False  # few spots beyond the image, or without a parent, are an error
    data.max_image_gib = 8.0  # of pixels of an image that are decoded together
    data.bin_um = 8.0  # visium_hd: bins that are read; transcripts: that molecules are added up in
    data.cells_um = 0.0  # xenium: squares that cells are added up in; 0: cells are spots
    data.tissue = tissue()  # simulated
    data.seeds = (0,)  # simulated: one volume each
    data.section_spacing_um = 16.0  # of stacks, where the files do not say z
    data.test_patients = 0  # simulated: last volumes, tested by the one fold of folds=published
    data.unseen = 0  # simulated: last sections kept out of everything

    encoder = config.encoder = ConfigDict()
    # stain_texture, efficientnet_lite0, or a model whose weights are given; several with commas
    # between. "precomputed": in the slide files; or HEST's name.
    encoder.name = "stain_texture"
    encoder.weights = ""  # folder of a downloaded model; of several NAME=FOLDER,NAME=FOLDER
    encoder.pool = ""  # cls | cls_mean, of a ViT that docs/encoders.md does not list
    encoder.norm = ""  # imagenet | half | none, in place of a network's own
    encoder.um_per_px = ""  # that a network is to see, in place of its own
    encoder.patch_um = 400.0  # of stain_texture; on her2st C2-C4 better than 240, 300, 500
    encoder.dir = ""  # where embeddings lie (HEST layout) or are kept; <workdir>/embeddings

    model = config.model = ConfigDict()
    model.width = 128
    model.blocks = 4
    model.heads = 4
    model.neighbors = 8
    model.dropout = 0.2
    model.expression = "token"  # differences: the published form
    model.frames = "blended"  # pca: the published form; radial: distances only
    model.time_scale = 1000.0  # 1: the published form
    model.components = 256  # principal axes of the features for anchor and context
    model.context = (9, 25, 60)  # sizes of neighbourhoods whose mean features are seen
    model.token_context = True  # False: tokens see the spot's own features only, as published
    model.feature_noise = 0.0
    model.feature_dropout = 0.0
    model.anchor = "kernel"  # none | ridge | kernel
    model.stand_back = True  # slides far from the training slides: see docs/methods.md
    model.image_weight = 0.5  # of the image tower in the mean beside the anchor; 0: no tower
    model.image_width = 256
    model.image_dropout = 0.6
    model.image_noise = 0.8
    model.precision = "float32"  # or bfloat16: operands of the network's matrix products
    model.tile = 0  # spots of a tile of attention; 0: 256 on CPUs, 16,384 on accelerators
    model.edge_cache_gib = 0.0  # edge features are kept in so much; 0: 1 on CPUs, 4 on accelerators
    model.attention = "tiled"  # segments: the definition, one edge list, for comparison
    model.targets = 0  # most variable genes trained on; 0: the scored ones only

    networks = config.networks = ConfigDict()  # the networks that ours are compared with
    networks.batch = 64  # spots of a step
    networks.patience = 20  # epochs without a better one that end the selection; 0: none
    networks.passes = 2  # of every slide in an epoch, where a step is a slide

    stnet = config.stnet = ConfigDict()
    stnet.encoder = ""  # trained from patches, as efficientnet_lite0; none: a head on embeddings
    stnet.weights = ""  # its file or folder, where it is not built in
    stnet.rate = 0.02  # its share of the learning rate

    bleep = config.bleep = ConfigDict()
    bleep.batch = 256
    bleep.width = 256
    bleep.dropout = 0.1
    bleep.temperature = 1.0

    # Of the three that see whole slides; a quarter or less of the published sizes.
    histogene = config.histogene = ConfigDict()
    histogene.width = 256
    histogene.depth = 4
    histogene.heads = 4  # 64 wide each
    histogene.dropout = 0.1
    histogene.positions = 128  # in x, and in y; spots beyond share the last

    triplex = config.triplex = ConfigDict()
    triplex.width = 64
    triplex.heads = 4
    triplex.fusion_depth = 1
    triplex.slide_depth = 3
    triplex.neighbours_depth = 1
    triplex.fusion_dropout = 0.2
    triplex.slide_dropout = 0.1
    triplex.neighbours_dropout = 0.3

    longnet = config.longnet = ConfigDict()  # gigapath_slide
    longnet.width = 256
    longnet.depth = 4
    longnet.heads = 8
    longnet.dropout = 0.1
    longnet.weights = ""  # GigaPath's slide_encoder.pth, for its tiles; none: from scratch
    longnet.rate = 0.02  # share of the learning rate that these take

    stack = config.stack = ConfigDict()  # holotea: sections of one patient, in one frame
    stack.registration = "rigid"  # affine; none: coordinates are aligned already
    stack.flips = True  # whether sections may lie upside down
    stack.sections = 2  # looked at on either side
    stack.candidates = 24  # planar nearest spots of each of them
    stack.kept = 24  # of all candidates of a spot
    stack.image = 0.3  # weight of likeness in their score; the place has the rest
    stack.sigma_um = 150.0  # in the plane
    stack.z_um = 400.0  # |dz| that costs as much as likeness or place can give
    stack.temperature = 0.3  # of the weights
    stack.expression = True  # of measured neighbours is seen; False: H&E only
    stack.control = True  # the ControlNet
    stack.base = "frozen"  # or trained on, under control
    stack.epochs = 100  # under control, at most, after the base's train.epochs
    stack.context_width = 64  # principal components of a retrieved spot that are seen
    stack.global_attention = True  # linear, over the section
    stack.prior = (
        "mix"  # of neighbours' expression and a ZINB that knows the context; base: config.prior
    )
    stack.rho = 0.5  # share of neighbours' expression in it
    stack.prior_decay_um = 50.0  # along z
    stack.consistency = 0.0  # weight of the loss

    coarsen = config.coarsen = ConfigDict()  # srast: how children are grouped
    coarsen.group = "2x2"  # 4x4 | hex7, of their lattice; size: squares; named: obs['parent']
    coarsen.shift = (0, 0)  # steps of the lattice; it moves the scores
    coarsen.size_um = 0.0  # side of the squares

    srast = config.srast = ConfigDict()
    srast.latents = True  # what each sample's autoencoder learned is seen
    srast.image = False  # features of the children's patches are seen
    srast.path = "dirichlet"  # or clr: flow between centred log-ratios
    srast.noise = "fitted"  # about the mean, as far as data lie from it; uniform: as published
    srast.pairing = "independent"  # optimal: noise paired with data; not fitted noise
    srast.velocity = 1.0  # weight of the squared error of the shares
    srast.kl = 1.0  # of the divergence from the measured shares
    srast.boundary = 0.01  # of the divergence from even shares
    srast.width = 16
    srast.blocks = 1
    srast.heads = 2
    srast.patience = 0  # epochs without a better one that end the selection; 0: none
    srast.batch = 4096  # pairs of parent and gene of a step
    srast.pool = 200  # most expressed genes, of which data.num_genes most variable are scored
    srast.trained_on = 200  # most expressed genes; those that are scored are left out
    srast.simulated_seeds = ()  # train on simulated tissue alone (data.tissue), test on the slides
    srast.pairs_at_once = 65536  # of parent and gene, when splitting

    config.prior = "zinb_fit"  # zinb_scalar | gaussian | zero

    train = config.train = ConfigDict()
    train.epochs = 100  # at most; the validation slide says how many
    train.select = True  # False: train.epochs as they are
    train.refit = True  # on all training slides, after selection; False: keep the best epoch
    train.regions_per_slide = 10
    train.whole_share = 0.0
    train.slides_per_step = 1  # regions of a step, shared by the devices
    train.accumulate = 1  # batches that a step's regions are divided into, to save memory
    train.learning_rate = 5e-4
    train.weight_decay = 0.0
    train.warmup_steps = 0
    train.clip_norm = 1.0
    train.ema_decay = 0.99
    train.loss_weight = "velocity"  # data: the published plain error
    train.checkpoint_every = 5  # epochs

    compare = config.compare = ConfigDict()  # of the configs compare_*; see docs/results.md
    compare.normalizations = ()  # a workdir under this one for each; none: no comparison
    compare.tasks = ()  # likewise, of data.task
    compare.reference = "stflow"  # that every other row is set against
    compare.maps = 4  # genes that are drawn by method
    compare.once = ()  # methods that are run with the first of config.seeds alone: slow ones
    compare.final = True  # fit to all slides too, as prediction needs; False: folds alone
    compare.controls = False  # predictions that know the truth, scored beside the methods

    sample = config.sample = ConfigDict()
    sample.evaluations = 5  # network evaluations of a draw
    sample.mean_draws = 8  # prior draws averaged by the posterior mean
    sample.draws = 99  # for calibration

    one_step = config.one_step = ConfigDict()  # stflow_one_step, which learns stflow's draws
    one_step.epochs = 40  # of learning; an epoch has train.regions_per_slide regions

    predict = config.predict = ConfigDict()
    predict.input = ""
    predict.output = ""
    predict.overwrite = False  # replace files that are there and not of this library
    predict.method = ""  # of the methods; the last, when empty
    predict.draws = 8
    predict.image = ""  # H&E image of the input slide, where it holds no features
    predict.features_key = "features"
    predict.embeddings = ""  # or a file of them (TRIDENT, CLAM, HEST-bench), by barcode or place
    predict.patch_px = config_dict.placeholder(float)  # their side in level 0, over what they say
    predict.spatial_unit = ""
    predict.in_tissue = True  # as data.in_tissue
    predict.um_per_px = config_dict.placeholder(float)
    predict.library = config_dict.placeholder(float)  # median UMI of a spot, of log1p; as trained
    predict.bin_um = 8.0  # of an input of Visium HD
    predict.cells_um = 0.0  # of an input of Xenium, as data.cells_um
    predict.spacing_um = config_dict.placeholder(float)  # of spots laid over an image; None: as in
    predict.lattice = "hex"  # or square                   training
    predict.tissue_threshold = config_dict.placeholder(float)  # optical density; None: Otsu's
    predict.regions = ""  # GeoJSON of QuPath: only spots in these are predicted
    predict.geojson = False  # spots with their values as GeoJSON beside the output
    predict.sections = ()  # of a stack, to generate whatever counts they hold
    predict.why = ""  # of a stack, SECTION:BARCODE: which spots it was told of
    predict.spatialdata = False  # of a slide, also a store OUT.zarr for spatialdata
    predict.maps = True  # pictures beside the output
    predict.report = True  # of a slide, OUT_report.html, for a person
    predict.html = True  # of a stack, the view in 3D
    predict.children = ""  # srast: file of the children, with obs['parent']; else their lattice's
    predict.whole = "largest_remainder"  # srast: draws in whole counts; or multinomial | real
    return config
