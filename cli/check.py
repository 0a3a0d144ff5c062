"""`scones check`: what own images would make, and what training on them takes, before anything starts."""

import numpy as np

from cli.output import progress, show_json, show_line, show_table
from settings import settings
from tasks.data import folder
from tasks.data.images import load_own
from tasks.model.sizing import hyperparameters_for, in_words, sizing

# Beside the setting's size, the one with which larger pictures tell more.
LARGER = 96


def run(dataset: str, as_json: bool) -> int:
    """0 if nothing is wrong, 1 if files would be left out or something is said. Raises DatasetError."""
    checked, chosen = load_own(dataset, progress), settings()
    train, test = (np.bincount(split.labels) for split in (checked.dataset.train, checked.dataset.test))
    images, left_out = len(checked.dataset.train.names), checked.dataset.left_out
    hyperparameters = hyperparameters_for(images, chosen)
    sizes = {side: sizing(images, side, hyperparameters) for side in dict.fromkeys((chosen.image_size, LARGER))}
    if as_json:
        show_json(
            {
                "classes": {
                    name: {"train": int(train[label]), "test": int(test[label])}
                    for label, name in enumerate(checked.dataset.classes)
                },
                "left_out": left_out,
                "warnings": checked.warnings,
                "training": [
                    {
                        "image_size": side,
                        "epochs": size.epochs,
                        "folds": size.folds,
                        "instance_type": size.suggested_instance(),
                        "dollars": size.dollars(size.suggested_instance()),
                    }
                    for side, size in sizes.items()
                ],
            }
        )
    else:
        rows = [(name, f"{train[label]:,}", f"{test[label]:,}") for label, name in enumerate(checked.dataset.classes)]
        show_table(("class", "to train", "to test"), rows)
        for line in checked.warnings:
            show_line(f"warning: {line}")
        if left_out:
            show_line(f"{len(left_out)} files would be left out:")
            for line in folder.told(left_out, most=100):
                show_line(f"  {line}")
        for side, size in sizes.items():
            show_line()
            if side != chosen.image_size:
                show_line(f"With SCONES_IMAGE_SIZE={side}:")
            for line in in_words(size, chosen.training_instance_type, True, chosen.training_max_seconds):
                show_line(line)
    return int(bool(left_out or checked.warnings))
