"""What codes are good for: new ones from a latent DPM, attributes and edits, few-shot generation."""
