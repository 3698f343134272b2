"""The door through which nnU-Net finds our trainers: re-exports only.

nnU-Net imports this file again at every look-up and forgets it afterwards. Because the classes live in the
package, each look-up returns the same class object, which pickling and ``isinstance`` rely on.
"""

try:
    from nnssl_mae.training.finetune_trainer import nnUNetTrainerMAEFinetune
    from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE
except ModuleNotFoundError as error:
    # A folder left in nnUNet_extTrainer by another environment must not break the search for other trainers.
    if error.name != "nnssl_mae":
        raise

__all__ = ["nnUNetTrainerMAE", "nnUNetTrainerMAEFinetune"]
