"""Training: one visible loop (`loop`), the images of a step (`batches`), and going on after a stop (`resume`)."""
from .config import TrainConfig, TrainResult
from .loop import default_loss, learning_rate, train, train_in_turns
from .resume import TrainingError

__all__ = ["TrainConfig", "TrainResult", "TrainingError", "default_loss", "learning_rate", "train", "train_in_turns"]
