from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
class nnUNetTrainerMAEFinetune(nnUNetTrainer): pass
