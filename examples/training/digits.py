"""Teach a small network to read digits from a data set in MNIST's format.

    python digits.py --data mnist --output out

`--data` holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two `t10k-` files (or the same with `.gz`). A
checkpoint is written after each epoch; started again, training goes on from it.
"""

import argparse
import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def read_idx(folder: Path, name: str) -> np.ndarray:
    path = folder / name
    raw = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{name}.gz").read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is not an IDX file of bytes")
    shape = np.frombuffer(raw, dtype=">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3]).reshape(
        tuple(int(side) for side in shape)
    )


def read_set(folder: Path, part: str) -> TensorDataset:
    images = read_idx(folder, f"{part}-images-idx3-ubyte")
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte")
    pixels = torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)
    return TensorDataset(pixels, torch.from_numpy(labels.astype(np.int64)))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 10),
    )  # fmt: skip


def save(checkpoint: dict, path: Path) -> None:
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()

    torch.manual_seed(17)
    training, test = read_set(options.data, "train"), read_set(options.data, "t10k")
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "digits.pt"
    done = 0
    if path.exists():
        checkpoint = torch.load(path, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        done = checkpoint["epochs"]
        print(f"resuming after epoch {done}", flush=True)

    for epoch in range(done + 1, options.epochs + 1):
        model.train()
        for pixels, labels in DataLoader(training, batch_size=options.batch, shuffle=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(pixels), labels)
            loss.backward()
            optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch}
        save(state, path)
        print(f"epoch {epoch}: loss {loss.item():.3f}", flush=True)

    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(pixels).argmax(1) == labels).sum())
            for pixels, labels in DataLoader(test, batch_size=512)
        )
    print(f"accuracy {right / len(test):.3f} of {len(test)} digits")


if __name__ == "__main__":
    main()
