import subprocess
import sys
from pathlib import Path

from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnssl_mae.training.logger import PretrainingLogger

_OFFLINE_RUN = """
import sys
from pathlib import Path
from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE
from tests.training.trainers import make_trainer
trainer = make_trainer(nnUNetTrainerMAE, Path(sys.argv[1]), "nnsslMAEPlans", fold=0)
trainer.num_epochs = 1
trainer.run_training()
"""


def test_no_value_is_kept_under_a_dice_name(tmp_path: Path) -> None:
    logger = PretrainingLogger(MetaLogger(str(tmp_path), False))
    for epoch in range(2):
        for key in logger.local_logger.my_fantastic_logging:
            logger.log(key, float(epoch), epoch)
    assert not [key for key in logger.get_checkpoint() if "dice" in key]
    logger.plot_progress_png(str(tmp_path))
    assert (tmp_path / "progress.png").stat().st_size > 5000


def test_weights_and_biases_gets_our_metrics_and_no_path(prepared: Path, nnunet_folders: Path, monkeypatch) -> None:
    """A real offline run: what it would upload lies in the .wandb file and in ``files``."""
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    repository = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", _OFFLINE_RUN, str(prepared)], check=True, cwd=repository)
    (run,) = (nnunet_folders / "results").rglob("offline-run-*")
    uploaded = [*run.glob("*.wandb"), *(run / "files").rglob("*")]
    content = b"".join(path.read_bytes() for path in uploaded if path.is_file())
    assert b"psnr" in content
    for private in (str(nnunet_folders), str(repository), str(Path.home()) + "/", sys.executable, "sub-0"):
        assert private.encode() not in content, private
    assert b"mean_fg_dice" not in content
