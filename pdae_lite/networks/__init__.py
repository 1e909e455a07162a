"""The networks: building blocks, the U-Net and the estimator on its trunk, encoders, and what a noise predictor is."""
