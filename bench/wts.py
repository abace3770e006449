"""`.wts` out and in, beside the loop that struct-packs one value after the other, as tensorrtx does.

    python bench/wts.py [--million 25.6] [--repeats 3]

Writes and reads a random state dict of the names and shapes of a ResNet-50 (scaled to another number of values when
told so), each way in turn and in one run, checks that bytes and bits are the same, and prints the medians.
"""

import argparse
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from reidkit.imaging import available_cores
from reidkit.wts import read_wts, write_wts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", type=float, default=25.6, help="values, in millions")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    tensors = state_dict(options.million / 25.6)
    with tempfile.TemporaryDirectory() as folder:
        ours, naive = Path(folder, "ours.wts"), Path(folder, "naive.wts")
        work: dict[str, Callable[[], object]] = {
            "write, value by value": lambda: naive_write(naive, tensors),
            "write_wts": lambda: write_wts(ours, tensors, overwrite=True),
            "read, value by value": lambda: naive_read(ours),
            "read_wts": lambda: read_wts(ours),
        }
        times: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(options.repeats):
            for name, call in work.items():
                started = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - started)
        check(ours, naive, tensors)
        size = ours.stat().st_size
    count = sum(array.size for array in tensors.values())
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{len(tensors)} tensors, {count:,} values, {size / 1e6:.0f} MB of text, {available_cores()} cores")
    print(f"{'':<22} {'seconds':>8} {'lowest':>8} {'values/s':>12} {'ratio':>7}")
    for name, seconds in medians.items():
        ratio = medians[f"{name.split('_')[0].split(',')[0]}, value by value"] / seconds
        print(f"{name:<22} {seconds:>8.2f} {min(times[name]):>8.2f} {count / seconds:>12,.0f} {ratio:>6.1f}x")


def state_dict(scale: float) -> dict[str, np.ndarray]:
    """Random weights in the names and shapes of a ResNet-50 with its classifier of 1,000."""
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}

    def convolution(name: str, *shape: int) -> None:
        rows = max(1, round(shape[0] * scale))
        tensors[f"{name}.weight"] = random.standard_normal((rows, *shape[1:]), np.float32)

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{part}"] = random.standard_normal(width, np.float32)
        tensors[f"{name}.num_batches_tracked"] = np.array(120_000)

    convolution("conv1", 64, 3, 7, 7)
    norm("bn1", 64)
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        planes = 64 << stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            for index, (outputs, inputs, kernel) in enumerate(
                ((planes, width, 1), (planes, planes, 3), (4 * planes, planes, 1)), 1
            ):
                convolution(f"{name}.conv{index}", outputs, inputs, kernel, kernel)
                norm(f"{name}.bn{index}", outputs)
            if block == 0:
                convolution(f"{name}.downsample.0", 4 * planes, width, 1, 1)
                norm(f"{name}.downsample.1", 4 * planes)
            width = 4 * planes
    convolution("fc", 1000, width)
    tensors["fc.bias"] = random.standard_normal(1000, np.float32)
    return tensors


def naive_write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with path.open("w") as stream:
        stream.write(f"{len(tensors)}\n")
        for name, array in tensors.items():
            flat = array.reshape(-1)
            stream.write(f"{name} {len(flat)}")
            for value in flat:
                stream.write(" ")
                stream.write(struct.pack(">f", float(value)).hex())
            stream.write("\n")


def naive_read(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    with path.open() as stream:
        for _ in range(int(stream.readline())):
            name, count, *words = stream.readline().split()
            values = [struct.unpack(">f", int(word, 16).to_bytes(4, "big"))[0] for word in words]
            assert len(values) == int(count)
            tensors[name] = np.array(values, np.float32)
    return tensors


def check(ours: Path, naive: Path, tensors: dict[str, np.ndarray]) -> None:
    if ours.read_bytes() != naive.read_bytes():
        raise SystemExit("the two files differ")
    back = read_wts(ours).tensors
    if list(back) != list(tensors) or any(not np.array_equal(back[name], tensors[name]) for name in tensors):
        raise SystemExit("what was read is not what was written")


if __name__ == "__main__":
    main()
