"""Training: one visible loop (`loop`), the images of a step (`batches`), and going on after a stop (`resume`)."""
from .loop import TrainConfig, TrainingError, TrainResult, default_loss, learning_rate, train, train_in_turns

__all__ = ["TrainConfig", "TrainResult", "TrainingError", "default_loss", "learning_rate", "train", "train_in_turns"]
