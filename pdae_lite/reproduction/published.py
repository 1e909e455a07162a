"""What the paper published in Tables 1 and 2 (Zhang, Zhao, Lin 2022)."""

# Table 1: the FFHQ 128×128 model on CelebA-HQ, T = 100: SSIM, LPIPS (AlexNet), MSE.
TABLE_1 = {
    "StyleGAN2, W": (0.677, 0.168, 0.016),
    "StyleGAN2, W+": (0.827, 0.114, 0.006),
    "VQ-GAN": (0.782, 0.109, 3.61e-3),
    "VQ-VAE2": (0.947, 0.012, 4.87e-4),
    "NVAE": (0.984, 0.001, 4.85e-5),
    "DDIM, inferred x_T": (0.917, 0.063, 0.002),
    "Diff-AE, random x_T": (0.677, 0.073, 0.007),
    "Diff-AE, inferred x_T": (0.991, 0.011, 6.07e-5),
    "PDAE, random x_T": (0.696, 0.094, 0.005),
    "PDAE, inferred x_T": (0.993, 0.008, 5.48e-5),
    "PDAE, x_T inferred in 1000 steps": (0.994, None, 3.84e-5),  # not the paper's: the README of the release
}


def table_1_by_metric() -> dict[str, dict[str, float | None]]:
    """Table 1 as records have it."""
    return {row: dict(zip(("SSIM", "LPIPS", "MSE"), values)) for row, values in TABLE_1.items()}


# Table 2: FID of unconditional samples at T = 10, 20, 50, 100.
STEPS = (10, 20, 50, 100)
TABLE_2 = {
    "ffhq128": {"DDIM": (31.87, 20.53, 15.82, 11.95), "Diff-AE": (21.95, 18.10, 13.14, 10.55),
                "PDAE": (20.16, 17.18, 12.81, 10.31)},
    "horse128": {"DDIM": (25.24, 14.41, 7.98, 5.93), "Diff-AE": (12.66, 9.21, 7.12, 5.27),
                 "PDAE": (11.94, 8.51, 6.83, 5.09)},
    "bedroom128": {"DDIM": (14.07, 9.29, 7.31, 5.88), "Diff-AE": (10.79, 8.42, 6.49, 5.32),
                   "PDAE": (10.05, 7.89, 6.33, 5.47)},
    "celeba64": {"DDIM": (18.89, 13.82, 8.48, 5.94), "Diff-AE": (12.92, 10.18, 7.05, 5.30),
                 "PDAE": (11.84, 9.65, 7.23, 5.19)},
}
TABLE_1_MODEL, TABLE_1_DATA, TABLE_1_STEPS, LONG_INVERSION = "ffhq128", "celebahq", 100, 1000
OFF_LAST = 0.3  # of Table 2: the plain DPM takes the last 30 % of the steps
