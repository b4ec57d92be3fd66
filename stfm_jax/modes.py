"""What the command line can do; apart, so that help and mistakes are answered at once."""

MODES = {
    "train": "fit the methods to every fold and score them, then fit them to all slides",
    "eval": "score the saved models again and rewrite the report",
    "predict": "predict a file with a method fitted to all slides",
    "embed": "write the encoders' features, and nothing else",
    "export": "write the data set with its features, folds and genes for tensorflow-datasets",
}
