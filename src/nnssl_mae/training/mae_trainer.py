"""Masked-autoencoder pre-training inside nnU-Net: ``nnUNetv2_train ... -tr nnUNetTrainerMAE``."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from packaging.version import Version
from torch import distributed as dist
from torch import nn

from nnssl_mae import __version__
from nnssl_mae.checkpoints.adaptation_plan import make_adaptation_plan
from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.evaluation.preview import PreviewCase, draw_preview
from nnssl_mae.files import short_hash, write_json
from nnssl_mae.masking import hidden_voxels
from nnssl_mae.networks.pretraining import pretraining_network, visible_blocks
from nnssl_mae.objectives import denormalise_blocks, reconstruction_loss, reconstruction_metrics
from nnssl_mae.patches.dataset import VolumeDataset
from nnssl_mae.patches.faults import DamagedCases
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.patches.loader import (
    Batch,
    PatchSettings,
    training_stream,
    validation_stream,
)
from nnssl_mae.patches.on_device_batching import DeviceAugmentation
from nnssl_mae.patches.splits import Split, continued_split, read_split, split_cases, subjects_of, write_split
from nnssl_mae.plans import PLANS_SCHEMA, read_block
from nnssl_mae.recipes.reading import parse_recipe
from nnssl_mae.scans.request import excluded_from
from nnssl_mae.stopping import StopAgreement, StopSignal
from nnssl_mae.training.logger import METRICS, PretrainingLogger, keep_paths_out_of_wandb
from nnssl_mae.training.one_head_trainer import OneHeadTrainer
from nnssl_mae.training.optimisers import EpochSchedule, make_optimizer
from nnssl_mae.training.pretraining_data import PretrainingData
from nnssl_mae.training.schedules import pretraining_learning_rate, pretraining_peak
from nnssl_mae.training.state import (
    bare_network,
    in_the_middle_of_an_epoch,
    refuse_changed_plans,
    set_aside,
    training_state,
    unfinished_epoch,
    write_checkpoint,
)

_PREVIEW_CASES = 3
_LATEST, _BEST, _FINAL = "checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_final.pth"
_SPLIT = "split.json"  # in the folder of the run; it names cases, so it is in no checkpoint


class nnUNetTrainerMAE(OneHeadTrainer):
    """Reconstructs hidden blocks of unlabelled volumes, by any recipe: plain MAE, S3D, AMAES or a user's own.

    Everything that decides a run stands in the recipe inside the plans (``nnssl-mae prepare`` wrote them). nnU-Net's
    training loop, checkpoints, logging and multi-GPU start are used as they are.
    """

    # nnU-Net records the arguments by these names.
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        keep_paths_out_of_wandb()
        super().__init__(plans, configuration, fold, dataset_json, device)
        block = read_block(self.configuration_manager.configuration, "pretrain", self.plans_manager.plans_name)
        self.recipe = parse_recipe(block["recipe"], source=f"in the plans {self.plans_manager.plans_name}")
        self.logger: PretrainingLogger = PretrainingLogger(self.logger)
        self._best_ema: float | None = None  # nnU-Net's name; here it holds the lowest validation loss
        self._damaged = DamagedCases(self.print_to_log_file)
        self._losses: list[torch.Tensor] = []  # of the steps of this epoch
        self._stop, self._agreement = StopSignal(), StopAgreement()
        self.patch_settings = PatchSettings(
            patch_size=tuple(self.configuration_manager.patch_size),
            grid=tuple(
                size // edge
                for size, edge in zip(self.configuration_manager.patch_size, block["block_edges"], strict=True)
            ),
            masking=self.recipe.masking,
            respect_exclusion=self.recipe.loss.respect_exclusion,
            seed=self.recipe.seed,
        )
        self._augment = DeviceAugmentation(self.recipe.augmentation, self.patch_settings.patch_size)
        self.initial_lr = pretraining_peak(self.recipe)
        self.weight_decay = self.recipe.optimiser.weight_decay
        self.num_epochs = self.recipe.schedule.epochs
        self.save_every = self.recipe.schedule.checkpoint_every
        if self.recipe.optimiser.precision != "fp16":
            self.grad_scaler = None  # only fp16 can underflow
        self.enable_deep_supervision = False
        # Mirroring is learnt on all axes: what nnU-Net writes into checkpoints for prediction.
        self.inference_allowed_mirroring_axes = (0, 1, 2) if self.recipe.augmentation.mirror else None

    def print_to_log_file(self, *args: Any, **kwargs: Any) -> None:
        """One voice: under ``torchrun`` nnU-Net does not know yet that it is one of several processes."""
        if (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))) == 0:
            super().print_to_log_file(*args, **kwargs)

    # ------------------------------------------------------------------ network, loss, optimiser

    def initialize(self) -> None:
        """As stock, with seeded initial weights."""
        # Read now: a damaged file is to be told at the start, not when a month of work is saved.
        self._excluded = excluded_from(Path(self.preprocessed_dataset_folder_base))
        recomputes = bool(self.recipe.network.sparse) or self.recipe.network.checkpoint_activations
        if self.is_ddp and recomputes and Version(torch.__version__) < Version("2.7"):
            # The older optimiser of compiled distributed networks refuses own autograd functions and checkpointing.
            torch._dynamo.config.optimize_ddp = False
        with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
            torch.manual_seed(self.recipe.seed)
            super().initialize()
        # Stock initialisation has just chosen a dataset class that expects labels.
        self.dataset_class = VolumeDataset

    @staticmethod
    def build_network_architecture(  # stock looks at the names of these arguments
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """The network of the recipe in the plans; reconstructs as many channels as it gets."""
        block = read_block(configuration_manager.configuration, "pretrain", plans_manager.plans_name)
        recipe = parse_recipe(block["recipe"], source=f"in the plans {plans_manager.plans_name}")
        architecture = configuration_manager.configuration["architecture"]
        return pretraining_network(architecture, num_input_channels, recipe.network, recipe.masking.hidden_value)

    def _build_loss(self) -> Any:
        return partial(reconstruction_loss, recipe=self.recipe.loss)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        """The optimiser of the recipe; one fused kernel on CUDA, which also spares a host sync of the grad scaler."""
        optimizer = make_optimizer(self.network.parameters(), self.recipe.optimiser, fused=self.device.type == "cuda")
        return optimizer, EpochSchedule(optimizer, partial(pretraining_learning_rate, self.recipe))

    # ------------------------------------------------------------------ data

    def do_split(self) -> tuple[list[str], list[str]]:
        """Whole subjects are held out: once for fold ``all``, by nnU-Net's ``splits_final.json`` for numbered folds.

        A run keeps the split with which it began.
        """
        index = CaseIndex(Path(self.preprocessed_dataset_folder))
        began = read_split(Path(self.output_folder, _SPLIT)) if self.current_epoch > 0 else None
        if began is None:
            folds_file = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
            first = self.local_rank == 0
            training, validation = split_cases(index, self.fold, self.recipe.seed, folds_file, write=first)
        else:
            training, validation = self._continued(began, subjects_of(index))
        self._damaged.allow_for(len(training))
        self.print_to_log_file(f"Pre-training on {len(training)} scans, validating on {len(validation)} scans.")
        return training, validation

    def _continued(self, began: Split, subject_of_case: dict[str, str]) -> tuple[list[str], list[str]]:
        """Says so where the dataset has changed since the run began."""
        split, before = continued_split(began, subject_of_case), {*began["train"], *began["val"]}
        new, gone = len(subject_of_case.keys() - before), len(before - subject_of_case.keys())
        if new or gone:
            self.print_to_log_file(
                f"WARNING: the dataset has changed since this run began: {new} scans are new and {gone} are gone. The "
                "subjects that were held out still are; validation losses of before and after are of other scans "
                "where theirs changed"
            )
        return split["train"], split["val"]

    def _agree(self, training: list[str], validation: list[str]) -> None:
        """Writes down with which split a run begins, once it is sure that all processes have the same."""
        if self.is_ddp:
            hashes: list[str] = [""] * dist.get_world_size()
            dist.all_gather_object(hashes, short_hash([training, validation]))
            if len(set(hashes)) > 1:
                raise ResumableError(
                    "The processes see different scans in the dataset, because `nnssl-mae prepare` changed it while "
                    "training started; start it again"
                )
        file = Path(self.output_folder, _SPLIT)
        if self.local_rank == 0 and (self.current_epoch == 0 or not file.is_file()):
            write_split(file, training, validation)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Streams of batches that depend on seed, epoch, iteration, rank and sample only."""
        training, validation = self.do_split()
        self._agree(training, validation)
        data, workers, pin = self._data(), get_allowed_n_proc_DA(), self.device.type == "cuda"
        self.preview_batches = data.validation(validation[:_PREVIEW_CASES])
        held_out = data.validation(data.share_of(validation[: self.recipe.schedule.validation_cases]))
        self.num_val_iterations_per_epoch = len(held_out)
        self._iterations = data.iterations(len(training))
        batches, done = data.training(training), min(len(self._losses), self._iterations)
        return (
            training_stream(batches, self.current_epoch, self.num_epochs, self._iterations, workers, pin, done),
            validation_stream(held_out, min(workers, 1 + workers // 4), pin),
        )

    def _data(self) -> PretrainingData:
        place = self.recipe.augmentation.device
        return PretrainingData(
            Path(self.preprocessed_dataset_folder),
            self.recipe,
            self.patch_settings,
            batch_size=self.batch_size,
            global_batch=self.configuration_manager.batch_size,
            rank=dist.get_rank() if self.is_ddp else 0,
            processes=dist.get_world_size() if self.is_ddp else 1,
            on_device=place == "gpu" or (place == "auto" and self.device.type == "cuda"),
        )

    # ------------------------------------------------------------------ steps

    def _reconstruct(self, batch: Batch, network: nn.Module | None = None) -> torch.Tensor:
        """Reconstruction of a batch that lies on the device; by another form of the network where one is given."""
        with self._number_format():
            prediction: torch.Tensor = (network or self.network)(
                batch["data"], batch["hidden"], batch.get("visible_blocks")
            )
        return prediction

    def _number_format(self) -> AbstractContextManager[Any]:
        precision = self.recipe.optimiser.precision
        if self.device.type != "cuda" or precision == "fp32":
            return nullcontext()
        return torch.autocast("cuda", dtype=torch.float16 if precision == "fp16" else torch.bfloat16)

    def _on_device(self, batch: Batch) -> Batch:
        # Counted here, where it lies on the CPU: asking the device would wait for it.
        batch = batch | {"visible_blocks": visible_blocks(self.recipe.network, batch["hidden"])}
        batch = {
            key: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }
        return self._augment(batch) if "plan" in batch else batch

    def on_train_start(self) -> None:
        """As stock; checkpoints of an earlier run in the same folder are set aside when a run begins."""
        if self.local_rank == 0 and self.current_epoch == 0 and not self._losses:
            for file in set_aside(Path(self.output_folder), (_LATEST, _BEST, _FINAL)):
                self.print_to_log_file(f"The folder holds an earlier run; its checkpoint is now {file.name}.")
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """As stock; an epoch in which the run was stopped goes on where it was."""
        super().on_train_epoch_start()
        self.num_iterations_per_epoch = max(0, self._iterations - len(self._losses))

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One optimiser step. The loss stays on the device until the epoch ends."""
        self._damaged.add(batch.get("replaced", ()))
        batch = self._on_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(
            self._reconstruct(batch),
            batch.get("target", batch["data"]),
            batch["hidden"],
            air=batch.get("air"),
            excluded=batch.get("excluded"),
        )
        if self.grad_scaler is None:
            loss.backward()
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
        if self.recipe.optimiser.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.optimiser.gradient_clip)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        self._losses.append(loss.detach())
        if self._should_stop():
            self._save_and_stop()
        return {"loss": loss.detach()}

    def _should_stop(self) -> bool:
        told = self._stop.name is not None
        return self._agreement.ask(told, self.device) if self.is_ddp else told

    def on_train_epoch_end(self, train_outputs: list[dict[str, torch.Tensor]]) -> None:
        """Logs the mean loss of the epoch over all processes: the only wait for the device."""
        loss = torch.stack(self._losses).mean()
        if self.is_ddp:
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        if not torch.isfinite(loss):
            raise UserError(
                f"The training loss of epoch {self.current_epoch} is {loss.item()}; checkpoints of earlier epochs are "
                "whole. Lower optimiser.learning_rate in the recipe, or look for scans with extreme values"
            )
        self.logger.log("train_losses", loss.item(), self.current_epoch)

    def validation_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Loss and metrics of each case, over hidden voxels only."""
        # Processes have different numbers of held-out cases, so several of them agree in training steps only.
        if self._stop.name is not None and not self.is_ddp:
            self._save_and_stop()
        self._damaged.add(batch.get("replaced", ()))
        batch = self._on_device(batch)
        prediction = self._in_image_units(self._reconstruct(batch), batch)
        return reconstruction_metrics(
            prediction,
            batch["data"],
            batch["hidden"],
            batch["data_range"],
            batch.get("excluded"),
            block_baseline=self.recipe.loss.target_normalisation == "block",
        )

    def _in_image_units(self, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        if self.recipe.loss.target_normalisation == "none":
            return prediction
        return denormalise_blocks(prediction, batch["data"], batch["hidden"], batch.get("excluded"))

    def on_validation_epoch_end(self, val_outputs: list[dict[str, torch.Tensor]]) -> None:
        """Logs the means over all held-out cases, and the damaged cases that other processes met."""
        self._share_damage()
        means = self._mean_over_cases(val_outputs)
        self.logger.log("val_losses", means["loss"], self.current_epoch)
        for name in METRICS:
            self.logger.log(name, means[name], self.current_epoch)

    def _share_damage(self) -> None:
        """Counts damaged cases over all processes, so that all of them stop where they are too many."""
        if not self.is_ddp:
            return
        gathered: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, self._damaged.problems)
        self._damaged.add(fault for problems in gathered for fault in problems.items())

    def _mean_over_cases(self, outputs: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """Means over the cases of which something counts; one that is not a number shows in the mean.

        Raises:
            UserError: none counts, because none can be read.
        """
        names = ("loss", *METRICS, "counted")
        values = np.stack([torch.cat([o[name] for o in outputs]).cpu().numpy() for name in names]) if outputs else None
        gathered = [values]
        if self.is_ddp:
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, values)
        table = np.concatenate([part for part in gathered if part is not None], axis=1)
        rows = dict(zip(names, table[:, table[-1] > 0], strict=True))
        if not rows["loss"].size and self._damaged.problems:
            raise UserError(
                "None of the held-out scans can be read, so nothing says how the run goes: "
                f"{next(iter(self._damaged.problems.values()))}. Check the disk, run the same `nnssl-mae prepare` "
                "again to make them anew, then continue with --c"
            )
        # SSIM is undefined for a case whose hidden blocks hold no whole window.
        rows["ssim"] = rows["ssim"][np.isfinite(rows["ssim"])]
        means = {name: float(rows[name].mean()) if rows[name].size else float("nan") for name in ("loss", *METRICS)}
        return {**means, "cases": rows["loss"].size}

    # ------------------------------------------------------------------ epochs, checkpoints, pictures

    def on_epoch_end(self) -> None:
        """Prints the epoch, writes checkpoints and pictures."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        last = {key: values[-1] for key, values in self.logger.local_logger.my_fantastic_logging.items()}
        self.print_to_log_file(f"train_loss {last['train_losses']:.4f}")
        self.print_to_log_file(f"val_loss {last['val_losses']:.4f}")
        self.print_to_log_file(
            f"hidden voxels: PSNR {last['psnr']:.2f} dB, SSIM {last['ssim']:.3f}, R2 {last['r2']:.3f}"
        )
        if self.recipe.loss.target_normalisation == "block":
            self.print_to_log_file("(with the true mean and spread of each block; R2 against these means)")
        seconds = last["epoch_end_timestamps"] - last["epoch_start_timestamps"]
        self.print_to_log_file(f"Epoch time: {seconds:.2f} s")

        final = self.current_epoch == self.num_epochs - 1
        # Masks and crops of validation never change, so the losses of two epochs can be compared.
        best = self._best_ema
        improved = best is None or not np.isfinite(best) or last["val_losses"] < best
        if improved:
            self._best_ema = last["val_losses"]
        if (self.current_epoch + 1) % self.save_every == 0 and not final:
            self.save_checkpoint(str(Path(self.output_folder, _LATEST)))
        if improved:
            self.print_to_log_file(f"New best validation loss: {self._best_ema:.4f}")
            self.save_checkpoint(str(Path(self.output_folder, _BEST)))
        if self.local_rank == 0:
            self.logger.plot_progress_png(self.output_folder)
            if final or (self.current_epoch + 1) % self.recipe.schedule.preview_every == 0:
                self._draw_preview(f"preview_epoch_{self.current_epoch + 1:04d}.png")
        self.current_epoch += 1
        self._losses = []

    def _draw_preview(self, name: str) -> None:
        self.network.eval()
        cases = []
        with torch.no_grad():
            for index in range(len(self.preview_batches)):
                batch = self._on_device(self.preview_batches[index])
                # The bare network: one process alone must not start a distributed forward.
                prediction = self._in_image_units(self._reconstruct(batch, bare_network(self.network)), batch)
                mask = hidden_voxels(batch["hidden"], batch["data"].shape[2:])
                excluded = batch.get("excluded", torch.zeros_like(mask))
                arrays = (batch["data"].cpu(), prediction.float().cpu(), mask.cpu(), excluded.cpu())
                for case, *volumes in zip(batch["cases"], *arrays, strict=True):
                    original, output, hidden, without = (volume[0].numpy() for volume in volumes)
                    cases.append(PreviewCase(case, original, output, hidden, excluded=without))
        title = f"{self.recipe.name}, epoch {self.current_epoch + 1}"
        if self.recipe.loss.target_normalisation == "block":
            title += "\nbrightness and contrast of each block are the true ones: this recipe does not predict them"
        draw_preview(cases, Path(self.output_folder, name), title)

    def stop_early(self) -> bool:
        """Whether the validation loss has not improved for as many epochs as the recipe is patient."""
        losses = np.nan_to_num(self.logger.get_value("val_losses", step=None), nan=np.inf)
        patience = self.recipe.schedule.patience
        return patience is not None and len(losses) - 1 - int(np.argmin(losses)) >= patience

    def on_train_end(self) -> None:
        """As stock, and ends the loader processes, which stock does not know."""
        super().on_train_end()
        self.dataloader_train.close()
        self.dataloader_val.close()

    def run_training(self) -> None:
        """As stock; SIGTERM and SIGUSR1 end it after the step at work, with everything saved.

        Raises:
            SystemExit: at such a signal, with 128 + its number.
        """
        with self._stop.heard():
            super().run_training()
        if self._stop.name is not None:
            self.print_to_log_file(f"{self._stop.name}: the training had ended; nnUNetv2_train --val does what is left")
            raise SystemExit(self._stop.exit_code)

    def _save_and_stop(self) -> None:
        """Nobody leaves before the checkpoint is whole: the start of all would end the process that writes it."""
        if self.local_rank == 0 and not self.disable_checkpointing:
            losses = [float(loss) for loss in self._losses]
            state = in_the_middle_of_an_epoch(self._state(), self.current_epoch, losses)
            write_checkpoint(Path(self.output_folder, _LATEST), state)
        if self.is_ddp:
            dist.barrier()
        self.dataloader_train.close()
        self.dataloader_val.close()
        self.print_to_log_file(
            f"{self._stop.name or 'A signal to another process'}: stopped in epoch {self.current_epoch} after "
            f"{len(self._losses)} of {self._iterations} steps. {_LATEST} holds all of them; continue with --c"
        )
        raise SystemExit(self._stop.exit_code)

    def save_checkpoint(self, filename: str) -> None:
        """Writes, by rename, what stock nnU-Net, nnssl's fork and nnU-Net's master read."""
        if self.local_rank == 0 and not self.disable_checkpointing:
            write_checkpoint(Path(filename), self._state())

    def _state(self) -> dict[str, Any]:
        """A checkpoint of the end of this epoch."""
        state = training_state(self, type(self).__name__)
        state["nnssl_adaptation_plan"] = make_adaptation_plan(
            self.plans_manager.plans, self.configuration_name, self.num_input_channels
        )
        state["citations"] = list(self.recipe.citation)
        state["nnssl_mae"] = {
            "schema": PLANS_SCHEMA,
            "version": __version__,
            "torch": str(torch.__version__),
            "recipe": self.recipe.model_dump(mode="json"),
            "epochs_done": self.current_epoch + 1,
            "validation_loss": self._last_validation_loss(),
            "excluded_datasets": None if self._excluded is None else list(self._excluded),
        }
        return state

    def _last_validation_loss(self) -> float | None:
        losses = self.logger.get_value("val_losses", step=None)
        return float(losses[-1]) if losses else None

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """As stock; when ``--c`` picks ``checkpoint_latest`` although ``checkpoint_best`` is newer, takes the newer."""
        path = Path(filename_or_checkpoint)
        best = path.with_name(_BEST)
        if path.name == _LATEST and best.is_file() and _epoch_of(best) > _epoch_of(path):
            self.print_to_log_file(f"{_BEST} is newer than {_LATEST}: continuing from it.")
            path = best
        refuse_changed_plans(path, {"recipe": self.recipe.model_dump(mode="json")})
        super().load_checkpoint(str(path))
        # Of several processes each takes those of the first: the mean of this one epoch is told a little wrongly.
        self._losses = list(torch.tensor(unfinished_epoch(path), device=self.device))
        if self.current_epoch < self.num_epochs:
            done = f", after its first {len(self._losses)} steps" if self._losses else ""
            self.print_to_log_file(f"Continuing from {path.name} in epoch {self.current_epoch}{done}.")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validates on all held-out scans and writes ``validation/summary.json`` (there is nothing to segment)."""
        _, validation = self.do_split()
        data = self._data()
        batches = data.validation(data.share_of(validation))
        self.network.eval()
        with torch.no_grad():
            outputs = [self.validation_step(batches[i]) for i in range(len(batches))]
        self._share_damage()
        means = self._mean_over_cases(outputs)
        if self.local_rank == 0:
            summary = {"val_loss": means["loss"], **{m: means[m] for m in METRICS}, "cases": means["cases"]}
            folder = Path(self.output_folder, "validation")
            folder.mkdir(exist_ok=True)
            write_json(folder / "summary.json", summary)
            self.print_to_log_file(f"Validation on {len(validation)} scans, hidden voxels only: {summary}")


def _epoch_of(checkpoint: Path) -> int:
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return int(content["current_epoch"])
