"""What `pdae doctor` prints of a good model and of one that was hardly trained, for the page of the book that explains
it.

    python scripts/pages/doctor_output.py       # minutes; book/_assets/doctor_good.txt, doctor_bad.txt
"""
import subprocess
import sys
import tempfile
from pathlib import Path

from pdae_lite.checkpoint import write_text

ASSETS = Path(__file__).resolve().parents[2] / "book" / "_assets"
PDAE = [sys.executable, "-m", "pdae_lite"]

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*PDAE, "train", "--dpm", "digits", "--data", "digits", "--steps", "20", "--batch-size", "32",
                        "--precision", "no", "--out", folder], check=True)
        for name, model in (("good", "digits"), ("bad", f"{folder}/model.safetensors")):
            text = subprocess.run([*PDAE, "doctor", model], check=False, capture_output=True, text=True).stdout
            write_text(ASSETS / f"doctor_{name}.txt", text)
