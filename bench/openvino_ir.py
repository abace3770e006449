"""A re-ID network of somebody else's OpenVINO IR, without reidkit's import: what do its published figures hang on?

    python bench/openvino_ir.py NETWORK.xml DATASET [--size 256x128] [--arithmetic f32 bf16] [--batch 1 16] [--dynamic]

Pictures are read and resized by OpenCV (linear, BGR, 0 to 255), embedded by OpenVINO's own API in each arithmetic and
batch size, and ranked by cosine under Market-1501's protocol: rank-1, mAP and mINP beside those of `reid evaluate`.
OpenVINO takes bf16 by itself on processors that have it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import openvino

from reidkit.data import load_split
from reidkit.metrics.distance import compare
from reidkit.metrics.junk import labels_of
from reidkit.metrics.ranking import rank_gallery
from reidkit.runtime.openvino_core import CORE
from reidkit.types import Crop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--size", default="256x128", help="of its crops, HEIGHTxWIDTH")
    parser.add_argument("--arithmetic", nargs="+", choices=["f32", "bf16", "f16"], default=["f32", "bf16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dynamic", action="store_true", help="compiled for any batch, not for this one")
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    split = load_split(options.dataset)
    query, gallery = (read(crops, height, width) for crops in (split.query, split.gallery))
    print(f"{options.network.name}, OpenVINO {openvino.__version__}, {CORE.get_property('CPU', 'FULL_DEVICE_NAME')}")
    for arithmetic in options.arithmetic:
        for batch in options.batch:
            model = CORE.read_model(options.network)
            model.reshape([-1 if options.dynamic else batch, 3, height, width])
            compiled = CORE.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": arithmetic})
            distances = compare(embed(compiled, query, batch), embed(compiled, gallery, batch))
            ranking = rank_gallery(distances, labels_of(split.query), labels_of(split.gallery))
            figures = [100 * value for value in (ranking.cmc(1), ranking.mean_ap, ranking.mean_inp)]
            print(
                f"{arithmetic:<5} batch {batch:<4} rank-1 {figures[0]:.2f}  mAP {figures[1]:.2f}  mINP {figures[2]:.2f}"
                f"  ({ranking.valid.sum()} queries)",
                flush=True,
            )


def read(crops: Sequence[Crop], height: int, width: int) -> np.ndarray:
    pixels = []
    for crop in crops:
        picture = cv2.imread(str(crop.path))
        if picture is None:
            raise SystemExit(f"OpenCV cannot read {crop.path}")
        pixels.append(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR))
    return np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32)


def embed(compiled: openvino.CompiledModel, pixels: np.ndarray, batch: int) -> np.ndarray:
    """Embeddings, batch by batch; the last one is filled up."""
    parts = []
    for start in range(0, len(pixels), batch):
        part = pixels[start : start + batch]
        filled = np.resize(part, (batch, *part.shape[1:]))
        parts.append(np.array(compiled(filled)[0]).reshape(batch, -1)[: len(part)])
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
