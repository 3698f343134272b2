"""nnU-Net's logger with the names that pre-training needs: no reconstruction loss under a Dice name."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.figure import Figure
from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger

METRICS = ("psnr", "ssim", "r2")
_KEYS = ("train_losses", "val_losses", *METRICS, "lrs", "epoch_start_timestamps", "epoch_end_timestamps")


_WANDB_PRIVACY = {"WANDB_X_DISABLE_META": "true", "WANDB_CONSOLE": "off", "WANDB_DISABLE_CODE": "true"}


def keep_paths_out_of_wandb() -> None:
    """Stops Weights & Biases from uploading the folder, the program and the console, which name paths and hosts.

    Call before nnU-Net opens the run; what the user set already stays.
    """
    for name, value in _WANDB_PRIVACY.items():
        os.environ.setdefault(name, value)


class PretrainingLogger(MetaLogger):
    """Takes over the loggers that nnU-Net opened (Weights & Biases, if enabled) with a local history of our own."""

    def __init__(self, stock: MetaLogger) -> None:
        # Not super().__init__(): it would open a second Weights & Biases run.
        self.output_folder, self.resume, self.loggers = stock.output_folder, stock.resume, stock.loggers
        self.local_logger = PretrainingHistory()


class PretrainingHistory(LocalLogger):
    """One list an item, one value an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.my_fantastic_logging: dict[str, list[float]] = {key: [] for key in _KEYS}

    def plot_progress_png(self, output_folder: str) -> None:
        """Draws ``progress.png``: losses, metrics over hidden voxels, learning rate and epoch time."""
        history = self.my_fantastic_logging
        epochs = range(min(len(values) for values in history.values()))
        figure = Figure(figsize=(10, 9), layout="constrained")
        loss, metrics, speed = figure.subplots(3, 1, sharex=True)
        loss.plot(epochs, history["train_losses"][: len(epochs)], label="training")
        loss.plot(epochs, history["val_losses"][: len(epochs)], label="validation")
        loss.set_ylabel("squared error, hidden voxels")
        metrics.plot(epochs, history["r2"][: len(epochs)], label="R2")
        metrics.plot(epochs, history["ssim"][: len(epochs)], label="SSIM")
        metrics.set_ylabel("validation, hidden voxels")
        decibels = metrics.twinx()
        decibels.plot(epochs, history["psnr"][: len(epochs)], color="tab:green", label="PSNR [dB]")
        decibels.legend(loc="lower right")
        starts, ends = history["epoch_start_timestamps"], history["epoch_end_timestamps"]
        speed.plot(
            epochs,
            [end - start for start, end in zip(starts, ends, strict=False)][: len(epochs)],
            label="s/epoch",
        )
        speed.set(xlabel="epoch", ylabel="seconds an epoch")
        speed.set_ylim(bottom=0)
        for axes in (loss, metrics):
            axes.legend(loc="upper left")
        figure.savefig(Path(output_folder, "progress.png"), dpi=80)
