"""Pre-training in one process, or in several that ``torchrun`` started, on one or more machines.

nnU-Net's own ``-num_gpus`` needs none of this; it knows one machine and CUDA only.
"""

from __future__ import annotations

import os

import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.training.joining import meeting_place
from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE


def pretrain(dataset: str, plans_name: str, fold: int | str, device_name: str, resume: bool) -> None:
    """Trains and validates; the same as ``nnUNetv2_train`` with our trainer, and able to run under ``torchrun``.

    Args:
        dataset: ``Dataset900_Brains``.
        plans_name: plans with our configuration.
        fold: ``all`` or a number.
        device_name: ``cuda`` or ``cpu``.
        resume: continue from the newest checkpoint.

    Raises:
        UserError: the device does not exist here, or several GPUs cannot talk to one another.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    # torchrun starts the same command again after a failure.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if rank > 0:
        os.environ["nnUNet_wandb_enabled"] = "0"
    device = training_device(device_name, local_rank, world_size)
    if world_size > 1 and device.type == "cuda" and not dist.is_nccl_available():
        raise UserError(
            f"{world_size} processes on GPUs need NCCL, which this torch lacks (it does on Windows); train on one GPU, "
            "without torchrun"
        )

    trainer = get_trainer_from_args(dataset, CONFIGURATION, fold, nnUNetTrainerMAE.__name__, plans_name, resume, device)
    if world_size > 1:
        _join_processes(trainer, device, local_rank, world_size)
    maybe_load_checkpoint(trainer, resume, validation_only=False)
    trainer.run_training()
    trainer.perform_actual_validation()
    if world_size > 1:
        dist.destroy_process_group()


def check_device(name: str) -> None:
    """Refuses a device that does not exist here.

    Raises:
        UserError: another name than cuda or cpu, or no GPU.
    """
    if name not in ("cuda", "cpu"):
        raise UserError(f"--device {name} is not possible; use cuda or cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("There is no CUDA GPU here; pass --device cpu, or run `nnssl-mae doctor`")


def training_device(name: str, local_rank: int = 0, world_size: int = 1) -> torch.device:
    """The device of one of several processes on this machine, set up as nnU-Net does.

    Raises:
        UserError: see :func:`check_device`.
    """
    check_device(name)
    if name == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
        return torch.device("cpu")
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join_processes(trainer: nnUNetTrainerMAE, device: torch.device, local_rank: int, world_size: int) -> None:
    """Makes nnU-Net's trainer one of several.

    Stock set-up in a process group takes the rank for the index of a local CUDA device. So the trainer is set up
    alone first, and joins afterwards.
    """
    if trainer.configuration_manager.batch_size < world_size:
        raise UserError(
            f"The batch of {trainer.configuration_manager.batch_size} patches cannot be shared by {world_size} "
            "processes; start fewer, or prepare with a larger --batch"
        )
    trainer.device = device
    trainer.initialize()
    store, rank, processes = meeting_place()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=processes)
    trainer.is_ddp, trainer.local_rank = True, dist.get_rank()
    trainer._set_batch_size_and_oversample()
    trainer.print_to_log_file(
        f"{world_size} processes share the batch of {trainer.configuration_manager.batch_size} patches."
    )
    trainer.network = DistributedDataParallel(
        trainer.network, device_ids=[local_rank] if device.type == "cuda" else None
    )
