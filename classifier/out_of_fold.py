"""Answers images with those members of a model that were not fitted on them; part of every artifact.

python out_of_fold.py MODEL_DIR IMAGES.npy ANSWERS.npy, from (n, 3, height, width) uint8 to (n, num_classes) float32.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from network import load_model


def main() -> None:
    model_dir, images, answers = sys.argv[1:]
    model = load_model(Path(model_dir))
    # Read as it is needed: it may be more than fits into memory.
    pixels = torch.from_numpy(np.load(images, mmap_mode="c"))
    np.save(answers, model.predict(model.out_of_fold(pixels)).probabilities.numpy())


if __name__ == "__main__":
    main()
